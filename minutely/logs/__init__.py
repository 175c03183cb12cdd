"""What a person's logs hold, and what in them is likely to be a mistake."""
