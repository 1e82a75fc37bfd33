"""Reports: runs frozen into one value, and the forms in which they leave."""
