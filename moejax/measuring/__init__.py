"""Checks by running programs: verification, and predictions against compiled programs and the clock."""
