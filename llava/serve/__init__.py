"""Front ends that talk about pictures: image loading, the generation engine and the terminal chat."""
