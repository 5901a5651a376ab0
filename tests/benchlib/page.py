"""A page with a part between two markers, which a measurement replaces."""
import sys


def replace(path, begin, end, text):
    """Puts `text` between the markers; ends the program when they are not there."""
    with open(path, encoding="utf-8") as file:
        old = file.read()
    if begin not in old or end not in old:
        sys.exit(f"{path} has no {begin} … {end}")
    head, rest = old.split(begin, 1)
    tail = rest.split(end, 1)[1]
    with open(path, "w", encoding="utf-8") as file:
        file.write(f"{head}{begin}\n{text}\n{end}{tail}")
