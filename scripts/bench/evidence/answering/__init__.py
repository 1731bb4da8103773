"""What is asked, of images encoded in which ways, by which checkpoints, and the files of their answers."""
