"""What each op checks and what comes out of it, one function per op, named after it, in a file per stage."""
