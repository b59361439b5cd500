"""What a stranger adds from outside the package: a family of captioners in two files."""
