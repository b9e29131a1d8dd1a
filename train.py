"""GradFiltering: which part of my instruction data should I train on, and how do I know?"""

import sys

from gradfiltering.interruption import ending_in_one_sentence

if __name__ == "__main__":
    with ending_in_one_sentence():
        from gradfiltering.config.launch import launch
    launch(sys.argv[1:])
