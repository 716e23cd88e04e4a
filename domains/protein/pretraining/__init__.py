"""How the embedded ESM-2 weights were made: `python -m domains.protein.pretrain`.

initialiser   the start that every pretrained and every scratch network shares
homologs      which sequences are related to a test set
corpus        what is trained on: the twin's world, or real sequences with conservation labels
loop          the training itself: resumable to the bit
transfer      what the weights are worth: few-label secondary structure, against scratch and one-hot
card          the page beside the weights
"""
