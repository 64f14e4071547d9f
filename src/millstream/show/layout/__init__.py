"""Where the boxes and lines of a layered drawing go: pure geometry, without a word about what is drawn."""
