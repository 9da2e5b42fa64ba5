# SPDX-License-Identifier: Apache-2.0
"""Where each command stands in `edvit --help`, and the examples that its own help ends with. A test runs them all."""

_MAKE, _USE, _FLEET, _SHARE, _MACHINE = (
    "Make an ensemble",
    "Ask and measure it",
    "Plan and run it on devices",
    "Publish and fetch it",
    "This machine",
)

PANELS: dict[str, str] = {
    **dict.fromkeys(("init", "run", "recipe", "export", "card"), _MAKE),
    **dict.fromkeys(("predict", "evaluate", "bench", "serve"), _USE),
    **dict.fromkeys(("plan", "simulate", "worker", "device", "fleet"), _FLEET),
    **dict.fromkeys(("push", "pull", "zoo", "space"), _SHARE),
    **dict.fromkeys(("doctor", "profile"), _MACHINE),
}

EXAMPLES: dict[str, tuple[str, ...]] = {
    "init": (
        "edvit init my_pictures",
        "edvit init my_pictures --teacher my_model --devices raspberry-pi-5,raspberry-pi-5 --output pictures.yaml",
    ),
    "run": (
        "edvit run digits",
        "edvit run my_recipe.yaml distill.epochs=3",
        "edvit run digits --stages evaluate,export",
    ),
    "recipe check": ("edvit recipe check my_recipe.yaml",),
    "recipe schema": ("edvit recipe schema --output recipe.schema.json",),
    "plan": (
        "edvit plan cifar10_vit_base",
        "edvit plan work/digits/09_card/ensemble --fleet my_fleet.yaml --output placement.json",
    ),
    "simulate": (
        "edvit simulate cifar10_vit_base --rate 1 --rate 3 --deadline-ms 2000",
        "edvit simulate work/digits/09_card/ensemble --fleet my_fleet.yaml --rate 20 --mean-up-s 86400",
    ),
    "export": ("edvit export work/digits/09_card/ensemble --profile raspberry-pi-5",),
    "card": ("edvit card work/digits/09_card/ensemble",),
    "push": ("edvit push work/digits/09_card/ensemble OWNER/NAME --dry-run",),
    "pull": (
        "edvit pull OWNER/NAME --placement placement.json --device kitchen",
        "edvit pull OWNER/NAME --sub-model 0,1 --precision fp32 --fusion",
    ),
    "zoo": ("edvit zoo", "edvit zoo work", "edvit zoo --org OWNER"),
    "evaluate": ("edvit evaluate work/digits/09_card/ensemble",),
    "predict": ("edvit predict digits picture.png", "edvit predict question_type 'Who was Ada Lovelace?' --absent 0,1"),
    "serve": ("edvit serve digits", "edvit serve kitchen --port 8001"),
    "worker": ("edvit worker kitchen",),
    "device join": (
        "edvit device join 10.0.0.1 --name pi0 --share share --placement placement.json --token-file fleet.token",
    ),
    "fleet up": ("edvit fleet up --placement placement.json --listen 10.0.0.1:6379 --token-file fleet.token",),
    "fleet status": ("edvit fleet status --placement placement.json --token-file fleet.token",),
    "fleet down": ("edvit fleet down --placement placement.json --token-file fleet.token",),
    "bench": ("edvit bench work/digits/09_card/ensemble --save", "edvit bench kitchen --precision int8"),
    "doctor": ("edvit doctor",),
    "profile": ("edvit profile --output my_pi5.yaml --quick",),
    "space run": ("edvit space run", "edvit space run OWNER/NAME --port 7861"),
    "space bundle": ("edvit space bundle work/digits/09_card/ensemble space_app/model/digits",),
    "space assemble": ("edvit space assemble my_space --ensemble digits=work/digits/09_card/ensemble",),
    "space push": ("edvit space push OWNER/NAME --dry-run",),
}
