"""The code behind *Large Language Models: Redefining the Limits of Computation*.

What a chapter calls a thing, this package calls it too. Each folder stands on a floor and imports
only from the floors below it; a test holds the package to that.

    basement  files         written whole or not at all
              checks        one wording of an error
    floor 0   text          strings <-> token ids
              layers        tensors -> tensors
              data          texts by name, token ids on disk, the batch of each step
    floor 1   models        token ids -> logits
              training      one step of learning, what it needs, and a run that outlives faults
              generation    logits -> the next token, again and again
              evaluation    how good the output is: likelihood, labels, spans, translations, answers, rankings
    floor 2   pretrained    published weights and tokenizers, in and out
              adaptation    a trained model taught more: fine-tuning, LoRA, preferences, rewards
              compression   8-bit and 4-bit weights, quicker linear layers
              distributed   one model trained by several processes
              interpret     looking inside a model that runs
    floor 3   figures       plots, with the book's style and an alt text
              exercises     checkers and the runner for the book's exercises
              serving       a model behind an address, in the form of OpenAI's API
              recipes       a whole training run from one file of settings
    floor 4   cli           the `llm-core` command
"""

__version__ = "0.1.0"
