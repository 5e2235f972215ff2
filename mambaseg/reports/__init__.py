"""What is left of a run for people to read: tables, pictures, curves, and one HTML file with all of it."""
