"""Solutions of the course's exercises, a file for each lesson, with the functions' names in the notebook."""
