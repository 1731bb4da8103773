"""Images before they are cut: their files, colours and sizes."""
