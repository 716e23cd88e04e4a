"""How the embedded acoustic weights were made: `python -m domains.speech.pretrain`.

corpus        what is trained on: the twin's eight speakers, or speech that flite's voices speak at run time
loop          what a step is; core.pretraining does the rest, resumable to the bit
transfer      what the weights are worth to a new speaker, against scratch
card          the page beside the weights
"""
