"""Which texts are worth learning from: their language, and the plainest signs that they are not prose.

No filter here is clever. A language is told by its script, and among those in Latin letters by its commonest words.
Quality is told by the rules of Gopher (Rae et al., 2021, appendix A.1): how many words, how long they are, how much is
symbols or lists. A rule says why it refuses a text, so that one can look at what it costs. Chapter 5.2 teaches it.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

COMMON: dict[str, frozenset[str]] = {
    language: frozenset(words.split())
    for language, words in {
        "en": "the of and to in is was for that with as by on are from it an be at this which",
        "de": "der die und in den von zu das mit sich des auf für ist im dem nicht ein eine als auch wurde",
        "fr": "de la le et les des en du dans est une par pour que qui au il sur plus avec ce",
        "es": "de la en el y que los del se las por un con para una es su al como fue más",
        "it": "di e il la che in un del per una con da della si le dei nel sono al anche è",
        "pt": "de a o e que do da em um para com uma os no se na por mais as dos como",
        "nl": "de van het een en in is dat op te zijn met voor die niet aan er om door als werd",
        "pl": "w i z na do się jest to że nie od o przez po jako dla oraz był za ze jego",
        "sv": "och i att en som det av är på för den till med ett var om inte har de från vid",
    }.items()
}
WORD = re.compile(r"[^\W\d_]+")
SCRIPTS = {  # the shares of letters from which on a script decides, looked at in this order
    "ja": (re.compile(r"[\u3040-\u30ff]"), 0.1),
    "zh": (re.compile(r"[\u3400-\u9fff\U00020000-\U0002ffff]"), 0.3),
    "ko": (re.compile(r"[\uac00-\ud7af]"), 0.3),
    "ru": (re.compile(r"[\u0400-\u04ff]"), 0.5),
    "ar": (re.compile(r"[\u0600-\u06ff]"), 0.5),
    "el": (re.compile(r"[\u0370-\u03ff]"), 0.5),
}
LOOKED_AT = 5000  # characters: a language shows early


def language(text: str) -> str | None:
    """The language of a text, as "en" or "zh", from its beginning; None: no rule fits, or two fit equally well.

    It knows nine languages in Latin letters, and one for each of six other scripts: a text in Ukrainian counts as "ru".

    >>> language("The cat is in the garden."), language("我们在花园里。"), language("Tak!")
    ('en', 'zh', None)
    """
    text = text[:LOOKED_AT]
    n_letters = sum(map(str.isalpha, text))
    if not n_letters:
        return None
    for name, (script, least) in SCRIPTS.items():
        if len(script.findall(text)) >= least * n_letters:
            return name
    counts = Counter(WORD.findall(text.lower()))
    found = {name: sum(counts[word] for word in common) for name, common in COMMON.items()}
    (best, most), (_, second) = sorted(found.items(), key=lambda pair: -pair[1])[:2]
    return best if most > second and most >= 0.05 * counts.total() else None


GOPHER_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))


@dataclass(frozen=True)
class GopherRules:
    """Gopher's rules of quality, for languages that write words with spaces between them; words are cut at spaces.

    Attributes:
        words: the fewest and the most.
        mean_length: of a word, in letters, the least and the most.
        symbols: the most # or ellipses, per word.
        bullets: the largest share of lines that begin with a bullet.
        ellipses: the largest share of lines that end with an ellipsis.
        alphabetic: the least share of words with a letter in them.
        common: how many of `common_words` must occur; 0 for other languages than English.
        common_words: the commonest words of the language.
    """

    words: tuple[int, int] = (50, 100_000)
    mean_length: tuple[float, float] = (3, 10)
    symbols: float = 0.1
    bullets: float = 0.9
    ellipses: float = 0.3
    alphabetic: float = 0.8
    common: int = 2
    common_words: frozenset[str] = GOPHER_WORDS

    def why_not(self, text: str) -> str | None:
        """The first rule that a text breaks, in a few words; None: it breaks none.

        >>> GopherRules().why_not("Too short.")
        'fewer than 50 words'
        """
        tokens = text.split()
        words = [token for token in tokens if any(map(str.isalnum, token))]
        if len(words) < self.words[0]:
            return f"fewer than {self.words[0]} words"
        if len(words) > self.words[1]:
            return f"more than {self.words[1]:,} words"
        mean = sum(map(len, words)) / len(words)
        if not self.mean_length[0] <= mean <= self.mean_length[1]:
            return "words too short or too long"
        if max(text.count("#"), text.count("...") + text.count("…")) > self.symbols * len(tokens):
            return "too many # or ellipses"
        lines = text.splitlines()
        if sum(line.lstrip().startswith(("•", "-")) for line in lines) > self.bullets * len(lines):
            return "too many bullets"
        if sum(line.rstrip().endswith(("...", "…")) for line in lines) > self.ellipses * len(lines):
            return "too many lines that break off"
        if sum(any(map(str.isalpha, token)) for token in tokens) < self.alphabetic * len(tokens):
            return "too few words with letters"
        if len(self.common_words & set(tokens)) < self.common:
            return "too few common words"
        return None
