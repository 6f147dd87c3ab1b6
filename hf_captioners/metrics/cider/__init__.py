"""CIDEr and CIDEr-D, the document frequencies and what a word of a caption is."""
