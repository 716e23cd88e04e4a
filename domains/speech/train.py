"""Adapt a speech model. Try: python -m domains.speech.train adapter=lora trainer.max_steps=20"""

from core.main import main

if __name__ == "__main__":
    main("speech")
