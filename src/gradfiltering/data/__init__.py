"""From rows in any supported format to tokenised examples."""
