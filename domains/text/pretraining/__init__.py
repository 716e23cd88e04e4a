"""How the embedded language model was made: `python -m domains.text.pretrain`.

tokens       the tokenizer of the twin's world
initialiser  the start that the pretrained and every scratch network share
loop         the network, its batches, the training itself: resumable to the bit
transfer     what the weights are worth with few labels: probe, LoRA, full, scratch
card         the page beside the weights
"""
