"""What is gathered on calibration sets for the methods that need it, before a merge."""
