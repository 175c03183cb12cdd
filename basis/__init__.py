"""What every part stands on: settings, mistakes, Arrow bytes. Imports no other part; every part may import it."""
