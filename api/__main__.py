"""Where the `shoal` command begins, and `python -m shoal`: an interrupt ends it without a word, from here on.

What comes before this module (the interpreter's start, `site`, the finder of an editable installation) is not ours.
"""

from .node.commands import interrupts

interrupts.end_the_process()

from .node.commands import main  # noqa: E402  (what it imports can be interrupted now)

if __name__ == "__main__":
    main()
