"""What each colour means, the same in every figure and page.

Okabe and Ito's palette, which colour-blind readers can distinguish.
"""

BLACK, GREY = "#000000", "#999999"
BLUE, SKY, GREEN = "#0072B2", "#56B4E9", "#009E73"
VERMILLION, ORANGE, PURPLE = "#D55E00", "#E69F00", "#CC79A7"
VIOLET, OLIVE = "#785EF0", "#8A8D0F"

METHODS = {
    "naive": GREY,
    "random": ORANGE,
    "oracle": BLACK,
    "gmt": SKY,
    "fgmt": VIOLET,
    "fgmt-signed": OLIVE,
    "activations": BLUE,
    "activations-signed": VERMILLION,
    "target start": PURPLE,
    "trained target": GREEN,
    # Without a source; drawn dashed.
    "sgd": GREY,
    "adam": SKY,
    "sign-descent": ORANGE,
    "lion": PURPLE,
    "muon": VIOLET,
    "distillation": BLACK,
}
RUNS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
SPLITS = {"train": GREY, "validation": BLUE, "test": VERMILLION}
# Colours that are hard to see on a dark page, and what replaces them there.
ON_DARK = {BLACK: "#ECECEC", BLUE: "#4BA6E0", VERMILLION: "#F0823C", GREEN: "#21B98C"}


def method_colour(name: str) -> str:
    """Return the colour of a transfer method, baseline or reference level.

    Args:
        name: As in a comparison; `naive-signed` has the colour of `naive`.

    Returns:
        A colour as `#rrggbb`; black for what is unknown.

    Example:
        >>> method_colour("naive-signed") == method_colour("naive")
        True
    """
    return METHODS.get(name) or METHODS.get(name.removesuffix("-signed"), BLACK)


def run_colour(number: int) -> str:
    """Return the colour of one of several runs, by its number from 0; they repeat after six."""
    return RUNS[number % len(RUNS)]
