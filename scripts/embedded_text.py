"""Catalogues that the embedded language models are trained on: made here, from word lists, and unlike the demo's.

Every title is composed at random: made-up brands from syllables, things, traits, places, people, sizes. Nothing is taken
from a published catalogue, so a measurement on a real one is a measurement on titles never seen.
"""

import numpy as np

ONSETS = "b br c ch cl cr d dr f fl fr g gl gr h j k kl l m n p ph pl pr qu r s sc sh sk sl sm sn sp st str t th tr v w y z".split()
NUCLEI = "a ai au e ea ee i ia ie io o oa oo ou u ue y".split()
CODAS = ["", "", "", *"ck d l ld lle m n nd ng nt p r rd rk rm rn rt s ss st t tt tz v x".split()]
ENDINGS = "a o ia ex ix on ora ella ette ium co tech line lab works craft & Sons & Co Paris London New York Labs Studio".split()
TRAITS = """advanced active aged all-natural ancient anti-aging antique basic big black blue bold bright brilliant broken brown
calm carbon ceramic cherry citrus classic clean clear cold complete compact cool cordless cotton crystal daily dark deep deluxe
digital double dry easy eco electric elegant endless essential everyday extra fast fine firm flexible floral folding fresh full
gentle giant glass gold golden gray green handmade happy hard heavy herbal hidden high hot hydrating ice infinite instant
intense iron ivory junior large last lavender leather lemon light liquid little living lonely long lost luminous luxury magic
matte mega metal midnight mild mini mint modern moon moisturizing mystic natural new night ocean oil-free old orange organic
original pearl perfect pink plain platinum plush pocket polar portable powerful premium pro professional pure purple quick
quiet radiant rapid rare real red refined regular reusable rich rose rough round royal ruby rustic sacred safe satin scented
secret sensitive shiny silent silk silver simple skinny slim slow small smart smooth soft solar solid special spring stainless
steel stone strong sugar summer super sweet swift tall thermal thick thin tiny total tough travel triple true turbo twin ultra
universal urban vanilla velvet vintage vital volume warm waterproof wet white wide wild winter wireless wooden yellow young""".split()
THINGS = """adapter album alarm amplifier apron arm armor arrow axe baby bag ball band bar basket bath battery battle beach bed bell
belt bench bicycle bird blade blanket blender board boat body bolt book boot bottle bowl box bracelet brake brush bucket bulb
butter button cable cake camera candle canvas cap car card care carpet case castle cat cave chain chair chalk charger chest
circle city clamp cleanser clock cloth cloud coat coffee collar color comb conditioner controller cookie cord corner cotton
couch cover cream crown cup curl curtain cushion cutter dance day deck desk diary dinner dish dock dog door dragon dream dress
drill drive drop drum dryer dust ear earth edge empire engine eye fabric face fan farm father feather fence field file film
filter finger fire fish flag flame flask floor flower foam foot forest fork formula fountain frame friend fruit fur game garden
garment gate gel gift girl glove glow glue goblet grain grass grinder grip guard guide guitar hair hammer hand handle hanger hat
head headphones heart heater heel helmet hero hill holder home honey hood hook horse hose house ink iron island jacket jar
jeans jewel journal juice jungle kettle key keyboard king kit kitchen knife knot lamp land laser lash leaf leg lens letter lid
lighter line lip lipstick lock loop lotion machine magnet makeup map mask mat meal melody memory mirror mist mix model monitor
monster moon mother motor mountain mouse mouth mug music nail name neck needle nest net night noise nose note novel oil oven
pack pad paint palette pan panel paper park party paste path pearl pen pencil people pepper perfume phone photo piano picture
pillow pin pipe plane planet plant plate player plug pocket polish pool pot powder press prince princess printer pump purse
puzzle queen rack radio rail rain razor record remover ring river road robe robot rock rod roller roof room rope rug salt sand
sauce scale scarf school scissors scrub sea seal seat seed serum set shade shadow shampoo shave sheet shelf shell shield ship
shirt shoe shop shower side sink skin skirt sky sleeve slipper smoke snow soap sock sofa song soul sound soup spark speaker
spice spoon sponge spray spring stand star station steam step stick stone stool storm story strap straw street string suit sun
sunscreen sweater sword system table tablet tail tank tape tea teeth tent thread throne ticket tie tiger time timer tin tissue
toe tool tooth top torch towel tower town toy track train tray treatment tree trimmer trouser truck tube umbrella valley van
vase vest view violin voice wagon wall wallet war wash watch water wave wax way web wedding wheel whistle wind window wine wing
winner wire witch wolf woman wood wool word world wrap wrench yarn zipper zone""".split()
PLACES = """Africa Alaska Amsterdam Arizona Athens Berlin Boston Brazil Cairo Canada Chicago China Cuba Denver Dublin Egypt England
Florida France Geneva Greece Havana Iceland India Ireland Italy Japan Kenya Lisbon London Madrid Malta Mexico Miami Milan Moscow
Naples Norway Oslo Paris Peru Prague Quebec Rome Russia Scotland Spain Sweden Texas Tokyo Turkey Venice Vienna Wales""".split()
NAMES = """Adam Alice Anna Arthur Ben Carl Clara Daniel David Diana Edward Elena Emma Eric Eva Felix Frank George Grace Hannah
Harry Helen Henry Ivan Jack James Jane John Julia Kate Laura Leo Lily Lucy Luke Maria Mark Martin Mary Max Mia Nina Nora Oliver
Oscar Paul Peter Rachel Richard Robert Rosa Ruth Sam Sarah Simon Sofia Susan Thomas Tom Victor Walter William""".split()
QUALITIES = """absolute absorbing accelerator accent activating adjustable adhesive aerosol alcohol allergy aloe aluminum amazing
amino anniversary antibacterial antioxidant apricot architect aromatic array artisan assorted assortment authentic automatic
balance balancing bamboo barrier beautiful beauty berry beverage bleach blemish blossom botanical bottom boosting brightening
brilliance bronze bubble calming camouflage capsule caramel chamomile charcoal chocolate cinnamon clarifying classical cleaner
cleansing climate clinical cocktail coconut collagen collection color-safe combination comfort complex concealer concentrate
concentrated conditioning connection contour control cooling corrective cosmetic counter creation cruelty-free cucumber
curling custom damage defense definition delicate delight dermatologist designer detangling dimension discovery diamond
disposable distressed double-sided duration dynamic edition elastic elixir emergency emulsion energizing enhancing enriched
environment enzyme essence essential eternal evening evolution exclusive exfoliating experience expert explorer exposure
extension exterior extract extraordinary eyeshadow fabulous fantastic fashion favorite featherweight fermented festival
fiber finishing fixation flavored flawless foundation fragrance freedom freshener friction fusion galaxy generation
ginger glamour glitter glossy glycolic gourmet gradual grapefruit guardian hairspray harmony healthy heritage highlighter
holiday horizon humidity hyaluronic hypoallergenic illuminating imperial improved indulgence infused infusion ingredient
innovation inspiration instrument insulated intensive interior international invisible jasmine journey keratin kingdom
laboratory lasting lavish layering legend lifting limited lipgloss luxurious machine magnetic maintenance mandarin marine
maximum mechanical medicated metallic microfiber mineral miracle moisture moisturizer motion mountain multi-purpose
mystery natural-looking nature neutral nourishing nutrition nutritive oatmeal obsession official olive opulent organizer
original-scent outdoor oxygen package paradise parfum passion peppermint peptide perfecting performance perfumed permanent
personal pigment pineapple plumping polishing pomegranate positive precision premiere prevention primer princess prismatic
private protecting protection protective protein purifying pyramid quality radiance reconstructing recovery refill refillable
refreshing regenerating rejuvenating relaxing reliable removable renewal repair repairing replacement replenishing resistant
restoring restorative retinol revitalizing revolution romantic rosemary salon sandalwood satellite seasonal selection
sensation serenity shimmer signature silicone skincare smoothing soothing souvenir sparkling special-edition spectrum
spiritual stabilizer standard starter station sterling straightening strength strengthening structure styling sublime
suede sunflower supreme surface sustainable technology temporary texture texturizing therapy thickening tightening tinted
tobacco tonic toner tourmaline traditional transform transforming translucent transparent treasure triangle tropical
turmeric ultimate ultrasonic unisex universe unscented vacuum variety vegan velvety verbena version vibrant victory virgin
vitamin volumizing volcanic weightless wellness whitening windproof wonderful workshop""".split()
UNITS = "oz Ounce ml Fl Oz g kg lb cm mm inch Inches ft Pack Count Piece Watt GB Pounds oz. fl. oz. Tablets Capsules Sheets".split()
LINKS = "for with of and in from by to the without".split()
ENDS = [
    "(Pack of {n})",
    "- {n} {unit}",
    ", {n} {unit}",
    "{n}.{m} {unit}",
    "({year})",
    "Vol. {n}",
    "{n}-Pack",
    "[{year}]",
    "#{n}",
    "{n}ct",
    "(Limited Edition)",
    "SPF {n}",
    "- {n}.{m}oz/{n}{m}ml",
    "Size {n}",
    "No. {n}",
    "({n}{m})",
    "{n}x{m}",
    "II",
    "III",
    "- Season {m}",
]


def _word(rng: np.random.Generator, syllables: int) -> str:
    def part(options: list[str]) -> str:
        return options[rng.integers(len(options))]

    return "".join(part(ONSETS) + part(NUCLEI) + part(CODAS) for _ in range(syllables))


def _pick(rng: np.random.Generator, words: list[str]) -> str:
    return words[min(int(len(words) * rng.beta(0.9, 1.1)), len(words) - 1)]


def _end(rng: np.random.Generator) -> str:
    return _pick(rng, ENDS).format(
        n=rng.integers(1, 100), m=rng.integers(0, 10), year=rng.integers(1930, 2026), unit=_pick(rng, UNITS)
    )


def brand(rng: np.random.Generator) -> str:
    """A made-up brand."""
    name = _word(rng, int(rng.integers(1, 4))).capitalize()
    if rng.random() < 0.3:
        name += " " + _pick(rng, ENDINGS)
    return name.upper() if rng.random() < 0.15 else name


def product(rng: np.random.Generator, brands: list[str]) -> str:
    """A product's title: brand, traits, things, and often a second part, and an end such as a size."""
    title = _product(rng, brands)
    if rng.random() < 0.5:
        title += _pick(rng, [", ", " - ", " with ", " & ", " | ", ": "]) + _product(rng, [])
    return title + (" " + _end(rng) if rng.random() < 0.55 else "")


def _product(rng: np.random.Generator, brands: list[str]) -> str:
    words = [_pick(rng, brands)] if brands and rng.random() < 0.9 else []
    for _ in range(int(rng.integers(1, 4))):
        words += [_pick(rng, TRAITS + QUALITIES) for _ in range(int(rng.integers(0, 3)))] + [_pick(rng, THINGS)]
        if rng.random() < 0.35:
            words.append(_pick(rng, LINKS))
    if rng.random() < 0.3:
        words.append(_word(rng, 2))
    words = [word if rng.random() < 0.08 or not word.islower() else word.capitalize() for word in words]
    return " ".join(words) + ("s" if rng.random() < 0.15 else "")


def work(rng: np.random.Generator) -> str:
    """A title of a book, film, game or song."""
    forms = [
        "The {t} {n}",
        "{n} of the {t} {m}",
        "{p}'s {n}",
        "A {n} in {l}",
        "{t} {n}: The {m} of {p}",
        "{p} and the {t} {n}",
        "{n}s",
        "{t}",
        "The {n} {m}",
        "My {t} {n}",
        "{l} {n}",
        "{p} {w}",
        "{n} {m}, The",
        "How to {n} a {m}",
        "{w}",
    ]
    form = forms[rng.integers(len(forms))]
    title = form.format(
        t=_pick(rng, TRAITS).capitalize(),
        n=_pick(rng, THINGS).capitalize(),
        m=_pick(rng, THINGS).capitalize(),
        p=_pick(rng, NAMES),
        l=_pick(rng, PLACES),
        w=_word(rng, 2).capitalize(),
    )
    return title + (" " + _end(rng) if rng.random() < 0.4 else "")


def titles(rng: np.random.Generator, num: int) -> list[str]:
    """One catalogue of ``num`` titles: few brands, so that titles share their beginnings as real ones do."""
    brands = [brand(rng) for _ in range(max(2, num // 12))]
    share = rng.random()
    return [work(rng) if rng.random() < share * share else product(rng, brands) for _ in range(num)]
