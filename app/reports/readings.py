"""How each language reads signs, money, hours and abbreviations aloud."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

# Singular and plural; in Slavic languages the forms after 1, 2 to 4, and 5.
Forms = tuple[str, ...]


@dataclass(frozen=True)
class Money:
    """A currency; `cents` is a format of {whole}, {unit}, {cents}, {cent_unit}, None if unclear."""

    unit: Forms
    cent_unit: Forms = ()
    cents: str | None = None


@dataclass(frozen=True)
class Clock:
    """Times of day; `signs` is their pattern, with the groups `minute` and `long`.

    `whole` is the form without minutes, `minutes` the form with minutes, `long_minutes` the form if
    "min" is written too; `one` is the word for one o'clock.
    """

    whole: Forms
    minutes: str
    one: str
    signs: str
    long_minutes: str = ""


@dataclass(frozen=True)
class Ordinals:
    """Signs of ordinal numbers: a pattern with the groups `feminine` and `plural`."""

    signs: str
    highest: int
    feminine: tuple[str, str] = ("", "")
    irregular: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Reading:
    """A language; `code` is num2words' code, `plural` chooses among three forms after a number.

    `abbreviations` are patterns on lower-case text, from the first letter of a word. `alike` maps
    words to others on both sides, where digits do not show which was meant (genders);
    `alike_phrases` are patterns for the same purpose. `one` is ("1" before a masculine noun, before
    a feminine one); the patterns `masculine_nouns` (first) and `feminine_nouns` decide.
    """

    code: str
    percent: Forms
    per_mille: str
    degree: Forms
    minus: str
    decimal: str = ","
    thousands: str = ". '"
    plural: Literal["two", "slavic", "polish", "romanian"] = "two"
    money: Mapping[str, Money] = field(default_factory=dict)
    scales: tuple[str, ...] = ()
    of: str = ""
    clock: Clock | None = None
    ordinals: Ordinals | None = None
    abbreviations: Mapping[str, str] = field(default_factory=dict)
    alike: Mapping[str, str] = field(default_factory=dict)
    alike_phrases: Mapping[str, str] = field(default_factory=dict)
    one: tuple[str, str] | None = None
    feminine_nouns: str = ""
    masculine_nouns: str = ""
    # Digits with this after them are left to another rule.
    left_alone: str = ""


_MINUTE = r"(?P<minute>[0-5][0-9])(?![0-9])"
_COLON = r":(?P<minute>[0-5][0-9])(?!:?[0-9])"
_H_CLOCK = rf"\s?h(?:\s?{_MINUTE}(?P<long>\s?m(?:in)?\b)?|\b)|{_COLON}(?:\s?h\b)?"


def _worded(hour: str) -> str:
    return rf"{_COLON}(?:\s?{hour}\b)?|\.{_MINUTE}\s?{hour}\b"


_IBERIAN_SIGNS = (
    r"\.?\s?(?:[º°](?!\s?[cf]\b)|(?P<feminine>ª))(?P<plural>s)?"
    r"|\.?(?:o|(?P<feminine>a))(?P<plural>s)?\b"
)
_PORTUGUESE_HUNDREDS = ("duz", "trez", "quatroc", "quinh", "seisc", "setec", "oitoc", "novec")
_PORTUGUESE_ABBREVIATIONS = {
    r"sr\.?ª(s?)\.?": r"senhora\1",
    r"sra(s?)\b\.?": r"senhora\1",
    r"sr(?:t|\.t)a(s?)\b\.?": r"senhorita\1",
    r"sr\.?s\b\.?": "senhores",
    r"sr\b\.?": "senhor",
    r"dr\.?ª(s?)\.?": r"doutora\1",
    r"dra(s?)\b\.?": r"doutora\1",
    r"dr\.?s\b\.?": "doutores",
    r"dr\b\.?": "doutor",
    r"v\.?\s?ex(?:\.?ª|a\.|\.a)(s?)\.?": r"vossa excelência\1",
    r"ex\.?m\.?[oº](s?)(?!\w)\.?": r"excelentíssimo\1",
    r"ex\.?m\.?[aª](s?)(?!\w)\.?": r"excelentíssima\1",
    r"il\.?m\.?[oº](s?)(?!\w)\.?": r"ilustríssimo\1",
    r"il\.?m\.?[aª](s?)(?!\w)\.?": r"ilustríssima\1",
    r"d\.?ª": "dona",
    r"prof\.?(?:ª|a\b\.?)": "professora",
    r"prof\.º?": "professor",
    r"eng\.?(?:ª|a\b\.)": "engenheira",
    r"eng\.º?": "engenheiro",
    r"arq\.?ª": "arquiteta",
    r"arq\.º?": "arquiteto",
    r"n\.?\s?[º°](s?)\.?": r"número\1 ",
    r"n\.[oº](s?)\b\.?(?=\s*[0-9])": r"número\1 ",
    r"n\.\s?(?=[0-9])": "número ",
    r"art\.?[º°]": "artigo ",
    r"art(s?)\.": r"artigo\1 ",
    r"p[áa]g(s?)\.": r"página\1 ",
    r"av\.": "avenida ",
    r"séc\.": "século ",
    r"tel\.": "telefone ",
    r"dto\.": "direito ",
    r"lda\b\.?": "limitada ",
    r"sto\.": "santo ",
    r"sta\.": "santa ",
    r"p\.\s?ex\.": "por exemplo ",
}
_PORTUGUESE_ALIKE = {
    "duas": "dois",
    "porcento": "por cento",
    **{f"{stem}entas": f"{stem}entos" for stem in _PORTUGUESE_HUNDREDS},
}
_PORTUGUESE_PHRASES = {
    r"\b(vinte|\w+enta|\w+entos|cento|mil) e uma\b": r"\1 e um",
    r"\bterceira feira\b": "terça feira",
}
_PORTUGUESE_CENTS = "{whole} {unit} e {cents} {cent_unit}"
_PORTUGUESE_CLOCK = Clock(
    ("hora", "horas"),
    "{hour} e {minute}",
    "uma",
    _H_CLOCK,
    long_minutes="{hour} {unit} e {minute} minutos",
)
_FEMININE = (
    r"\w+(?:as?|ção|ções|são|sões|dades?|gem|gens|ices?|tudes?)|vez|vezes|noites?|partes?|tardes?"
    r"|mulher|mulheres|mãe|mães|leis?|chaves?|fases?|frases?|classes?|bases?|cidades?|redes?"
)
# Masculine in spite of their ending.
_MASCULINE = r"\w*(?:ema|grama|oma|ima)s?|\w+ista|dias?|mapas?|planetas?|cometas?"


def _portuguese(code: str, cent: str) -> Reading:
    cents = (cent, f"{cent}s")

    def money(one: str, many: str) -> Money:
        return Money((one, many), cents, _PORTUGUESE_CENTS)

    return Reading(
        code,
        percent=("por cento",),
        per_mille="por mil",
        degree=("grau", "graus"),
        minus="menos",
        money={
            "€": money("euro", "euros"),
            "r$": Money(("real", "reais"), ("centavo", "centavos"), _PORTUGUESE_CENTS),
            "us$": money("dólar", "dólares"),
            "$": money("dólar", "dólares"),
            "£": Money(("libra", "libras"), ("péni", "pence"), _PORTUGUESE_CENTS),
        },
        scales=(
            "mil milhões", "milhões", "milhão", "mil", "bilhões", "bilhão", "biliões", "bilião",
        ),
        of="de",
        clock=_PORTUGUESE_CLOCK,
        ordinals=Ordinals(_IBERIAN_SIGNS, 1999, ("o", "a")),
        abbreviations=_PORTUGUESE_ABBREVIATIONS,
        alike=_PORTUGUESE_ALIKE,
        alike_phrases=_PORTUGUESE_PHRASES,
        one=("um", "uma"),
        feminine_nouns=_FEMININE,
        masculine_nouns=_MASCULINE,
    )  # fmt: skip


_ENGLISH_CENTS = "{whole} {unit} and {cents} {cent_unit}"
ENGLISH = Reading(
    "en",
    percent=("percent",),
    per_mille="per mille",
    degree=("degree", "degrees"),
    minus="minus",
    decimal=".",
    thousands=",' ",
    money={
        "$": Money(("dollar", "dollars"), ("cent", "cents"), _ENGLISH_CENTS),
        "£": Money(("pound", "pounds")),
        "€": Money(("euro", "euros"), ("cent", "cents"), _ENGLISH_CENTS),
    },
    scales=("thousand", "million", "billion", "trillion"),
    # Whisper's English normaliser reads ordinals itself.
    left_alone=r"(?:st|nd|rd|th|s)\b",
)  # fmt: skip

READINGS: Mapping[str, Reading] = {
    "portuguese": _portuguese("pt", "cêntimo"),
    "brazilian_portuguese": _portuguese("pt_BR", "centavo"),
    "spanish": Reading(
        "es",
        percent=("por ciento",),
        per_mille="por mil",
        degree=("grado", "grados"),
        minus="menos",
        money={
            "€": Money(("euro", "euros"), ("céntimo", "céntimos"), "{whole} {unit} con {cents}"),
            "$": Money(("dólar", "dólares"), ("centavo", "centavos"), "{whole} {unit} con {cents}"),
            "£": Money(("libra", "libras")),
        },
        scales=("mil millones", "millones", "millón", "mil"),
        of="de",
        clock=Clock(("hora", "horas"), "{hour} y {minute}", "una", _H_CLOCK),
        ordinals=Ordinals(
            _IBERIAN_SIGNS + r"|\.?(?P<short>er)\b",
            100,
            ("o", "a"),
            {11: "undécimo", 12: "duodécimo"},
        ),
        abbreviations={
            r"sra(s?)\b\.?": r"señora\1",
            r"srta(s?)\b\.?": r"señorita\1",
            r"sres\b\.?": "señores",
            r"sr\b\.?": "señor",
            r"dra(s?)\b\.?": r"doctora\1",
            r"dr\b\.?": "doctor",
            r"(?:vd|ud)(s?)\.": r"usted\1",
            r"d(?:ña\b\.?|\.?ª)": "doña",
            r"excmo\b\.?": "excelentísimo",
            r"excma\b\.?": "excelentísima",
            r"n\.?\s?[º°](s?)\.?": r"número\1 ",
            r"núm\.": "número ",
            r"pág\.": "página ",
            r"av(?:da)?\.": "avenida ",
        },
        alike={
            "veintiuna": "veintiuno",
            "veintiún": "veintiuno",
            **{
                f"{stem}ientas": f"{stem}ientos"
                for stem in ("dosc", "tresc", "cuatroc", "seisc", "setec", "ochoc", "novec")
            },
            "quinientas": "quinientos",
        },
        alike_phrases={r"\b(treinta|\w+enta) y una?\b": r"\1 y uno"},
        one=("un", "una"),
        feminine_nouns=r"\w+(?:as?|ción|ciones|dad|dades)|vez|veces|noches?|partes?|mujer|tardes?",
        masculine_nouns=r"\w*(?:ema|grama|oma|ima)s?|\w+ista|días?|mapas?|planetas?|cometas?",
    ),
    "french": Reading(
        "fr",
        percent=("pour cent",),
        per_mille="pour mille",
        degree=("degré", "degrés"),
        minus="moins",
        money={
            "€": Money(("euro", "euros"), ("centime", "centimes"), "{whole} {unit} {cents}"),
            "$": Money(("dollar", "dollars"), ("cent", "cents"), "{whole} {unit} {cents}"),
            "£": Money(("livre", "livres")),
        },
        scales=("mille", "million", "millions", "milliard", "milliards"),
        of="de",
        clock=Clock(("heure", "heures"), "{hour} {unit} {minute}", "une", _H_CLOCK),
        ordinals=Ordinals(
            r"(?:er|(?P<feminine>[eè]?re)|i?[eè]me|e)(?P<plural>s)?\b",
            1999,
            ("premier", "première"),
        ),
        abbreviations={
            r"mmes\b\.?": "mesdames",
            r"mme\b\.?": "madame",
            r"mlle(s?)\b\.?": r"mademoiselle\1",
            r"mm\.": "messieurs ",
            r"m\.\s(?=[^\W\d_]{2})": "monsieur ",
            r"mgr\b\.?": "monseigneur",
            r"dr\b\.?": "docteur",
            r"n\.?\s?[º°](s?)\.?": r"numéro\1 ",
        },
        alike_phrases={
            r"\b(vingt|trente|quarante|cinquante|soixante) et une\b": r"\1 et un",
        },
    ),
    "german": Reading(
        "de",
        percent=("prozent",),
        per_mille="promille",
        degree=("grad",),
        minus="minus",
        money={
            "€": Money(("euro",), ("cent",), "{whole} {unit} {cents}"),
            "$": Money(("dollar",), ("cent",), "{whole} {unit} {cents}"),
            "£": Money(("pfund",)),
        },
        one=("ein", "eine"),
        scales=("tausend", "million", "millionen", "milliarde", "milliarden"),
        clock=Clock(("uhr",), "{hour} uhr {minute}", "ein", _worded("uhr")),
        abbreviations={
            r"dr\b\.?": "doktor",
            r"prof\.": "professor",
            r"hr\.": "herr",
            r"nr\.": "nummer ",
            r"ca\.": "circa ",
            r"z\.\s?b\.": "zum beispiel ",
            r"d\.\s?h\.": "das heißt ",
            r"u\.\s?a\.": "unter anderem ",
            r"bzw\.": "beziehungsweise ",
            r"usw\.": "und so weiter ",
        },
    ),
    "italian": Reading(
        "it",
        percent=("per cento",),
        per_mille="per mille",
        degree=("grado", "gradi"),
        minus="meno",
        money={
            "€": Money(("euro",), ("centesimo", "centesimi"), "{whole} {unit} e {cents}"),
            "$": Money(
                ("dollaro", "dollari"), ("centesimo", "centesimi"), "{whole} {unit} e {cents}"
            ),
            "£": Money(("sterlina", "sterline")),
        },
        scales=("mila", "milione", "milioni", "miliardo", "miliardi"),
        of="di",
        clock=Clock(("ora", "ore"), "{hour} e {minute}", "una", _H_CLOCK),
        ordinals=Ordinals(r"\.?\s?(?:[º°](?!\s?[cf]\b)|(?P<feminine>ª))", 1999, ("o", "a")),
        abbreviations={
            r"sig\.?ra\b\.?": "signora",
            r"sig\.?na\b\.?": "signorina",
            r"sigg\.": "signori",
            r"sig\.": "signor ",
            r"dott\.?ssa\b\.?": "dottoressa",
            r"dott\.": "dottor ",
            r"dr\b\.?": "dottor ",
            r"prof\.ssa\b\.?": "professoressa",
            r"prof\.": "professor ",
            r"n\.?\s?[º°]\.?": "numero ",
        },
        alike={"percento": "per cento"},
        one=("un", "una"),
        feminine_nouns=r"\w+(?:a|zione|zioni|tà|gione)|volta|notte|parte",
        masculine_nouns=r"\w*(?:ema|gramma|oma|ima)|\w+ista",
    ),
    "dutch": Reading(
        "nl",
        percent=("procent",),
        per_mille="promille",
        degree=("graad", "graden"),
        minus="min",
        money={
            "€": Money(("euro",), ("cent",), "{whole} {unit} {cents}"),
            "$": Money(("dollar",), ("cent",), "{whole} {unit} {cents}"),
            "£": Money(("pond",)),
        },
        scales=("duizend", "miljoen", "miljard"),
        clock=Clock(("uur",), "{hour} uur {minute}", "één", _worded("uur")),
        ordinals=Ordinals(r"(?:ste|de|e)\b", 1999),
        abbreviations={r"nr\.": "nummer ", r"mevr\.": "mevrouw ", r"bijv\.": "bijvoorbeeld "},
        alike={"een": "één"},
    ),
    "polish": Reading(
        "pl",
        percent=("procent",),
        per_mille="promili",
        degree=("stopień", "stopnie", "stopni"),
        minus="minus",
        plural="polish",
        money={
            "€": Money(("euro",)),
            "$": Money(("dolar", "dolary", "dolarów")),
            "£": Money(("funt", "funty", "funtów")),
            "zł": Money(("złoty", "złote", "złotych")),
        },
        alike={"dwie": "dwa"},
    ),
    "romanian": Reading(
        "ro",
        percent=("la sută",),
        per_mille="la mie",
        degree=("grad", "grade", "de grade"),
        minus="minus",
        plural="romanian",
        money={
            "€": Money(("euro", "euro", "de euro")),
            "$": Money(("dolar", "dolari", "de dolari")),
            "£": Money(("liră", "lire", "de lire")),
        },
        alike={"două": "doi", "douăsprezece": "doisprezece"},
    ),
    "russian": Reading(
        "ru",
        percent=("процент", "процента", "процентов"),
        per_mille="промилле",
        degree=("градус", "градуса", "градусов"),
        minus="минус",
        plural="slavic",
        money={
            "€": Money(("евро",)),
            "$": Money(("доллар", "доллара", "долларов")),
            "£": Money(("фунт", "фунта", "фунтов")),
            "₽": Money(("рубль", "рубля", "рублей")),
        },
        alike={"две": "два"},
    ),
    "ukrainian": Reading(
        "uk",
        percent=("відсоток", "відсотки", "відсотків"),
        per_mille="проміле",
        degree=("градус", "градуси", "градусів"),
        minus="мінус",
        plural="slavic",
        money={
            "€": Money(("євро",)),
            "$": Money(("долар", "долари", "доларів")),
            "£": Money(("фунт", "фунти", "фунтів")),
            "₴": Money(("гривня", "гривні", "гривень")),
        },
        alike={"дві": "два"},
    ),
    "swedish": Reading(
        "sv",
        percent=("procent",),
        per_mille="promille",
        degree=("grad", "grader"),
        minus="minus",
        money={
            "€": Money(("euro",)),
            "$": Money(("dollar",)),
            "£": Money(("pund",)),
        },
        ordinals=Ordinals(r":[ae]\b", 1999),
    ),
}
