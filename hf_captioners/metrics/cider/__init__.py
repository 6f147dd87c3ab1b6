"""CIDEr and CIDEr-D, their document frequencies and the definition of a word."""
