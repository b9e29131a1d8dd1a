"""GradFiltering: which part of my instruction data should I train on, and how do I know?"""

import sys

from gradfiltering.config.launch import launch

if __name__ == "__main__":
    launch(sys.argv[1:])
