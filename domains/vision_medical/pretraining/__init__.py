"""How the embedded network was made: `python -m domains.vision_medical.pretrain`.

network    the U-shaped network, its start, its loss
loop       multi-organ segmentation of synthetic patients, every image in another contrast
transfer   what the weights are worth at a site with a lesion class that they have never seen
card       the page beside the weights
"""
