"""Lines of text that tokenizers find hard, the same for a seed: scripts, emoji, code, blanks, bytes."""

import random
import unicodedata

WORDS = {
    "latin": "the mill water wheel naïve Straße café ŒUVRE İstanbul ﬁne don't I'LL we've HE'S it's ſ 'ſ",
    "cyrillic": "река мельница колесо Ёлка їжак съезд ПРИВЕТ",
    "greek": "ποταμός μύλος Ἀθήνα λόγος ΣΊΣΥΦΟΣ ς",
    "cjk": "水車 磨坊 東京都 你好世界 龍龘 𠀀𠮷 カタカナ ひらがな ﾊﾝｶｸ 、。「」",
    "arabic": "طاحونة ماء السَّلَامُ عَلَيْكُم ١٢٣ لا",
    "hebrew": "שָׁלוֹם טחנה מים",
    "devanagari": "नमस्ते पानी चक्की क्षत्रिय १२३",
    "thai": "สวัสดี น้ำ กังหัน ที่นี่ ๑๒๓",
    "hangul": "물레방아 안녕하세요 한글 ㄱㄴ 각",
    "other": "გამარჯობა Բարեւ ሰላም ᐃᓄᒃ ខ្មែរ தமிழ் བོད 𝔘𝔫𝔦 𐍈 ǅ ʰ ᴴ ª º",
}
EMOJI = ["😀", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪🇫🇷🇺", "👍🏽", "👩🏿‍🚀", "❤️", "☎︎", "1️⃣", "🫠", "🧑‍🤝‍🧑", "\u200d", "\ufe0f"]
CODE = [
    "for (int i = 0; i < n; ++i) {", "\treturn x[i] ** 2;  // done", "def f(self, *args):\n    pass\n",
    "<div class=\"a b\">&nbsp;</div>", "SELECT * FROM t WHERE a>=10;", "0x1F + 1e-9 == 3.14159f",
    "camelCaseName HTTPServer getURL2 snake_case_name", "https://a.b/c?d=e&f=%20#g", "\\n \\u00e9 \\x41",
    "{\"k\": [1, 2.50, null]}", "#include <a/b.h>\r\n", "a//b/*c*/", "if x:\n\t\t\n\n  y\r\n\r\n"]
BLANKS = [" ", "  ", "   ", " " * 7, " " * 40, "\t", "\t\t", "\n", "\n\n", "\n \n", "\r\n", "\r", " \t ", "\u00a0", "\u3000",
          "\u2003", "\u2028", "\u0085", "\u200b", "\ufeff", "\x0b", "\x0c", "\u1680", "\u180e"]
CONTROLS = ["\x00", "\x01", "\x07", "\x1b[0m", "\x7f", "\u0080", "\ufffd", "\ufffe", "\U0010ffff", "\ue000", "\u0600"]
NUMBERS = ["7", "42", "123", "1234567", "3.14", "1,000,000", "²½Ⅷ", "٣٤", "１２３", "𝟙𝟚", "0" * 30]
LOOKALIKES = ["<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "<|user|>", "<|end|>", "<|endoftext|>", "<start_of_turn>",
              "<|im_start", "< s>", "<0x41>", "<0xFF>", "<0x0A>", "▁", "▁▁", "▁the", "<tool>", "<tool", "Ġ", "Ċthe", "[INST]", "<S>",
              "<|im_start|> <|im_end|>\n <|user|>  x"]
INVALID = [b"\xff", b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80", b"\x80\x80", b"\xe2(\xa1"]


def fragment(random_):
    kind = random_.randrange(12)
    if kind < 4:
        words = random_.choice(list(WORDS.values())).split(" ")
        text = " ".join(random_.choices(words, k=random_.randint(1, 6)))
        if random_.random() < 0.2:
            text = unicodedata.normalize(random_.choice(["NFC", "NFD", "NFKC", "NFKD"]), text)
        if random_.random() < 0.2:
            text = random_.choice([text.upper(), text.title(), text.lower()])
        return text
    if kind == 10:
        return random_.choice("aаα字אक.-=_ \u0301\u200d") * random_.choice([2, 3, 9, 60])
    if kind == 11:  # any assigned character of the tables both libraries know
        characters = (chr(random_.choice([random_.randrange(0x20, 0x3000), random_.randrange(0x3000, 0xD800),
                                          random_.randrange(0x1F000, 0x1FA00)])) for _ in range(random_.randint(1, 8)))
        return "".join(c for c in characters if unicodedata.category(c) != "Cn")
    return random_.choice({4: EMOJI, 5: CODE, 6: BLANKS, 7: CONTROLS, 8: NUMBERS, 9: LOOKALIKES}[kind])


def lines(count, seed=1):
    """`count` lines as bytes; about one in twenty is not UTF-8."""
    random_ = random.Random(seed)
    made = []
    for _ in range(count):
        text = ""
        for _ in range(random_.choice([0, 1, 1, 2, 3, 4, 6, 10])):
            text += fragment(random_) + random_.choice(["", "", " ", " ", "\n", ". "])
        line = text.encode()
        if random_.random() < 0.05:
            at = random_.randint(0, len(line))
            line = line[:at] + random_.choice(INVALID) + line[at:]
        made.append(line)
    return made
