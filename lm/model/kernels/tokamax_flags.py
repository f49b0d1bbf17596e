"""The command-line flags that tokamax defines."""

from absl import flags


def use_default_flags() -> None:
    """Give the flags of tokamax their default values, unless the program has parsed its flags.

    tokamax would otherwise parse the arguments of any program that calls it, such as a notebook,
    and raise an error for arguments that it does not know.
    """
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
