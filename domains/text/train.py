"""Adapt a language model. Try: python -m domains.text.train adapter=lora trainer.max_steps=20"""

from core.main import main

if __name__ == "__main__":
    main("text")
