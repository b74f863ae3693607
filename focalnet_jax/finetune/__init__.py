"""Fine-tuning on a folder of photographs, from the images to a page of results."""
