"""Wrong solutions, one usual mistake each; the file is named after it."""
