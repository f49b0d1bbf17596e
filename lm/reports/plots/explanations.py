"""Two plain sentences about each figure of a report: its content, and how to read it.

The caption of a figure has its numbers of runs, its intervals and its markers.
"""

EXPLANATIONS = {
    "loss": (
        "Each point is the held-out loss of a finished run, and the line is the law that was fitted"
        " to the filled points.",
        "Where the line is dashed, the law is extrapolated: the gray band shows how far it may be"
        " wrong.",
    ),
    "compute": (
        "The same losses against the compute that each run used.",
        "Runs near the lower edge spend their compute best.",
    ),
    "tokens": (
        "Each line is one model size, trained on more tokens from left to right.",
        "A steep line is a model that still improves with more text.",
    ),
    "frontier": (
        "The black line is the lowest loss that the law reaches with a budget, if size and tokens"
        " are chosen best.",
        "Runs far above the line used the wrong size for their budget.",
    ),
    "contours": (
        "All points on one contour have the same loss by the law of size and tokens.",
        "The dashed line is the cheapest size and number of tokens for each loss.",
    ),
    "isoflop": (
        "Each curve holds models of different sizes that used the same compute.",
        "The lowest point of a curve is the best size for that compute.",
    ),
    "optimal_size": (
        "Each point is the best size of one budget, from the minima of the isoFLOP curves.",
        "The line extends them to larger budgets.",
    ),
    "predicted": (
        "Each line compares the measured loss of a run with the law: 0 is exact agreement.",
        "A point inside its wide bar agrees with the law, and the diamond is the run that was"
        " predicted before it started.",
    ),
    "predicted_tasks": (
        "Each line compares the accuracy that was predicted for the largest run with its result.",
        "A diamond inside its bar is consistent with the prediction, but a wide bar says little.",
    ),
    "mastered": (
        "The number of tasks that a model can do, against its size.",
        "A rising line means that larger models have more abilities.",
    ),
    "abilities": (
        "The same count for each group of tasks.",
        "Groups without any task above its baseline are named in the caption.",
    ),
    "tasks": (
        "The accuracy of each task that changes with size or is above its baseline.",
        "A task is learned where its points leave the dotted line of the best baseline.",
    ),
    "tasks_flat": (
        "The accuracy of the scores without a significant slope over size.",
        "Some differ strongly from size to size, but neither rise nor fall with it.",
    ),
    "margins": (
        "The solid line is accuracy above the baseline, the dashed line the confidence in the"
        " correct choice.",
        "If confidence rises before accuracy, the ability grows smoothly and the jump is due to"
        " the metric.",
    ),
    "emergence": (
        "Exact answers need all their tokens to be correct, so their share jumps even if the"
        " probability of a token rises smoothly.",
        "Markers near the dashed line show that the jump is due to this metric.",
    ),
    "tasks_vs_loss": (
        "Accuracy against held-out loss, which falls to the right.",
        "If runs of all sizes and token budgets share one curve, the loss alone decides the"
        " accuracy.",
    ),
    "tuned": (
        "The score of each tuned task against size, from pre-trained weights and from scratch.",
        "A method is useful where its line is above the dotted line of the best baseline.",
    ),
    "pretraining_gain": (
        "The score of a pre-trained model minus that of a model from scratch, against size.",
        "Pre-training pays where the bar of a point is above 0.",
    ),
    "completion": (
        "The share of held-out words that a model completes exactly, against its size.",
        "A rising line means that a lower loss becomes visible in the text.",
    ),
    "goodput": (
        "Each bar divides the wall time of a run into its phases.",
        "The number beside a name is the share of time in useful training steps.",
    ),
    "curves": (
        "The training loss of each run while it trains.",
        "A curve that leaves the others early points to a bad setting of that run.",
    ),
    "sources": (
        "The held-out loss of each source of text, against size.",
        "Sources with a steep line gain most from larger models.",
    ),
    "rates_by_width": (
        "The loss against the learning rate, a curve per width.",
        "If the minima are above each other, one learning rate serves all widths.",
    ),
    "rates_by_depth": (
        "The loss against the learning rate, a curve per depth.",
        "If the minima are above each other, one learning rate serves all depths.",
    ),
}


LOSS_WITHOUT_LAW = (
    "Each point is the held-out loss of a finished run.",
    "There is no law yet, and the section gives the reason.",
)


LOSS_WITHOUT_INTERVAL = (
    EXPLANATIONS["loss"][0],
    "Where the line is dashed, the law is extrapolated, and the sizes are too few to determine how"
    " far it may be wrong.",
)


def explain_figure(name: str, has_law: bool = True, has_interval: bool = True) -> str:
    """Return the two sentences about a figure, "" for an unknown figure.

    has_law: False if the sweep has no law of size, so the figure of the loss has points alone.
    has_interval: False if the law of size has no interval.
    """
    sentences = EXPLANATIONS.get(name, ())
    if name == "loss" and not (has_law and has_interval):
        sentences = LOSS_WITHOUT_INTERVAL if has_law else LOSS_WITHOUT_LAW
    return " ".join(sentences)
