"""Adapt a medical imaging model. Try: python -m domains.vision_medical.train adapter=lora trainer.max_steps=20"""

from core.main import main

if __name__ == "__main__":
    main("vision_medical")
