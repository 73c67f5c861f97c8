"""The page's colours: seaborn's palettes, written down.

Importing seaborn takes longer than drawing a whole page (it brings pandas and scipy.stats), so the few colours that are
used stand here; a test compares them with what seaborn itself gives.
"""


def _hexes(listed: str) -> tuple[str, ...]:
    return tuple(listed.split())


# color_palette("mako", 76) less its darkest ten and its palest two: 64 steps that stand out from black and from white
MAKO = _hexes(
    "2e1e3b 312140 342447 35264c 372851 3a2c58 3b2e5d 3c3162 3e3469 3f366f 403974 413d7b 413f80 414285 "
    "40478b 3f4a8f 3e4d93 3d5296 3b5698 3a599a 395e9c 38629d 37659e 366a9f 366da0 3671a0 3575a1 3579a2 "
    "357ca3 347fa4 3484a5 3487a6 348ba6 348fa7 3492a8 3496a9 349aaa 359eaa 35a1ab 37a5ac 38a9ac 39acac "
    "3cb1ad 3eb4ad 40b7ad 44bcad 47bfad 4bc2ad 50c6ad 55caad 5bcdad 65d0ad 6dd3ad 76d5ae 82d8b0 8bdab2 "
    "94dcb5 9edfb8 a6e1bc aee3c0 b7e6c5 bee8ca c4eacf ccedd6"
)

# color_palette("crest", 8): for the order of many thin lines
CREST = _hexes("86be91 68af90 509e90 3d8e8e 2a7d8c 1d6c8a 1f5985 27457c")

# color_palette("colorblind"), less the yellow and the pink that vanish on white
COLORBLIND = _hexes("0173b2 de8f05 029e73 d55e00 cc78bc ca9161 949494 56b4e9")

# The same, darkened until each stands out from white by 3 to 1 (WCAG 2.1, 1.4.11): lines in the light theme
ON_WHITE = _hexes("0173b2 b06a00 027e5c c25200 b0529c 96673a 7a7a7a 1f86bd")
