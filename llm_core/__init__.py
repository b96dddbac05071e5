"""The code behind *Large Language Models: Redefining the Limits of Computation*.

What a chapter calls a thing, this package calls it too. Each folder stands on a floor and imports
only from the floors below it; a test holds the package to that.

    floor 0   text          strings <-> token ids
              layers        tensors -> tensors
    floor 1   models        token ids -> logits
              training      one step of learning, and what it needs
              generation    logits -> the next token, again and again
    floor 2   pretrained    published weights and tokenizers, in and out
              compression   8-bit and 4-bit weights, quicker linear layers
              interpret     looking inside a model that runs
    floor 3   figures       plots, with the book's style and an alt text
              exercises     checkers and the runner for the book's exercises
    floor 4   cli           the `llm-core` command
"""

__version__ = "0.1.0"
