"""What a 2D model's score says of a rendering: noise levels, prompts of views, the score itself."""
