"""A first config from logs alone: `minutely init` looks at their first rows and says what it took each column for."""
