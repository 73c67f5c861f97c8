"""The page's colours: seaborn's palettes, written down.

Importing seaborn takes longer than drawing a whole page (it brings pandas and scipy.stats), so the few colours that are
used stand here; a test compares them with what seaborn itself gives.
"""


def _hexes(listed: str) -> tuple[str, ...]:
    return tuple(listed.split())


# color_palette("mako", 66) without its two ends: 64 steps from nearly black to pale green, of even lightness
MAKO = _hexes(
    "13090f 170c15 1b0f1a 1f1220 221425 26172b 291a31 2d1d38 30203e 332345 35254a 372851 3a2c58 3b2f5f "
    "3d3266 3e356b 403872 403c79 413f80 414387 40488d 3f4b90 3e5095 3c5598 3a599a 395e9c 38629d 37669e "
    "366b9f 3670a0 3574a1 3579a2 357ca3 3480a4 3485a5 3489a6 348ea7 3492a8 3496a9 349aaa 359fab 36a3ab "
    "37a8ac 39abac 3bafad 3eb4ad 41b8ad 45bdad 49c1ad 4dc4ad 53c9ad 5bcdad 65d0ad 70d4ad 79d6ae 85d9b1 "
    "91dbb4 9cdeb7 a6e1bc b0e4c1 b7e6c5 c0e9cc c8ecd2 d0efd9"
)

# color_palette("crest", 8): for the order of many thin lines
CREST = _hexes("86be91 68af90 509e90 3d8e8e 2a7d8c 1d6c8a 1f5985 27457c")

# color_palette("colorblind"), less the yellow and the pink that vanish on white
COLORBLIND = _hexes("0173b2 de8f05 029e73 d55e00 cc78bc ca9161 949494 56b4e9")
