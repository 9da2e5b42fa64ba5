"""How the page writes a probability or an accuracy: everywhere the same, so that no two figures contradict."""


def percent(share: float) -> str:
    """A share of 0..1 with one decimal, such as "99.9 %"; never rounded up to certainty, nor down to impossibility."""
    value = 100 * share
    if share < 1 and value >= 99.95:
        return "99.9 %"
    if 0 < value < 0.05:
        return "< 0.1 %"
    return f"{value:.1f} %"
