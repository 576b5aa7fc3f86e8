"""Word lists of the demo model's story language.

Every list is one word class of the grammar in `grammar.py`. A class is a tuple of
strings; the order is part of the recipe because seeds index into it.
"""


def _words(text):
    """Splits a block of words; `_` stands for a space inside one entry."""
    out = tuple(w.replace("_", " ") for w in text.split())
    if len(set(out)) != len(out):
        seen = set()
        raise ValueError("duplicate words: %s" % [w for w in out if w in seen or seen.add(w)])
    return out


NAME_F = _words("""
Tilda Anna Bella Clara Daisy Ella Flora Greta Hanna Ida Julia Kira Lena Mila Nora Olga Petra Rosa Sara
Thea Una Vera Wanda Yara Zoe Alma Berta Cora Dora Edda Frieda Gilda Hilda Irma Jette Klara Lotte Maja
Nele Paula Rita Selma Tara Ursa Viola Wilma Zara Agnes Birgit Carla Delia Elsa Fanny Gerda Helga Ines
Joan Karin Lucy Martha Nadia Olive Pearl Ruth Sonja Tess Uma Vicky Winnie Ada Betty Celia Dina Emma
Fiona Gwen Heidi Iris Jane Kate Lily Maria Nelly Opal Penny Romy Sally Tina Violet Wendy Amy Bonny Cindy
Donna Elise Faye Ginger Hazel Isla Judy Kitty Laura Molly Nancy Polly Rachel Stella Trudy Vanessa Alice
Beth Carol Diana Edith Grace Helen Ivy Josie Leah Mabel Nina Phoebe Rosie Sophie Tabitha
""")

NAME_M = _words("""
Milo Anton Bruno Carl Dario Emil Felix Gustav Hugo Ivan Jonas Karl Leo Max Nico Oscar Paul Rolf Simon
Theo Udo Viktor Walter Xaver Adam Ben Conrad David Edgar Frank Georg Henry Igor Jakob Kurt Linus Martin
Noah Otto Peter Quentin Robin Samuel Tom Urban Vincent Willy Albert Basil Casper Daniel Erik Fred Gregor
Hans Isaac John Kilian Lukas Moritz Nathan Oliver Philip Ralf Stefan Tobias Vitus Wilbur Alfred Bernard
Cedric Dexter Elmer Floyd Gilbert Harold Iggy Jasper Kevin Louis Marvin Ned Owen Percy Rufus Sidney Toby
Vernon Wesley Archie Barney Chester Dudley Ernest Finn Gordon Horace Jack Kenny Lester Mickey Norman
Orson Patrick Ricky Stanley Trevor Victor Winston Arthur Boris Clive Dennis Eddie Freddy Gus Herbert
Jerry Larry Monty Nigel Ollie Pip Ray Sammy Teddy Wally
""")

ANIMAL = _words("""
fox cat dog mouse rabbit bear wolf owl frog toad hedgehog squirrel badger beaver otter mole goat sheep
lamb cow horse pony donkey pig duck goose hen rooster swan sparrow robin crow raven magpie eagle hawk
falcon stork heron crane pelican penguin seal whale dolphin turtle tortoise snail beetle bee ant
butterfly moth spider cricket grasshopper dragonfly ladybird lizard newt gecko monkey lion tiger leopard
panda koala kangaroo camel giraffe zebra elephant hippo rhino buffalo moose deer elk lynx weasel ferret
hamster parrot pigeon dove peacock turkey ostrich llama puppy kitten bunny dragon unicorn walrus
""")

# Adjectives that introduce a hero or a friend: "a small fox".
LOOK = _words("""
small little tiny big large tall young old thin round fluffy furry plump spotted grey brown white black
golden silver lonely hungry sleepy lively graceful elegant ragged scruffy handsome pretty tired muddy
dusty shaggy skinny chubby sturdy slender bearded barefoot whiskered sunburnt freckled limping
""")

# Character adjectives: "was brave and kind".
TRAIT = _words("""
brave kind clever gentle curious honest patient polite cheerful generous careful playful shy proud
stubborn lazy friendly funny loyal wise quiet noisy helpful merry thoughtful bold calm witty modest
humble dreamy busy nosy grumpy jolly tidy messy forgetful hopeful graceful fearless trusting sensible
skilful tireless careless daring earnest faithful fair modern tough mild nervous restless serious
silly smart strict tender timid warm-hearted
""")

COLOUR = _words("""
red blue green yellow white black brown grey pink purple orange violet golden silver copper scarlet
crimson turquoise amber ivory olive maroon beige indigo lilac emerald ruby bronze marble wooden iron
glass stone leather velvet striped dotted painted carved rusty
""")

# Adjectives of things: "a shiny lantern".
THING_ADJ = _words("""
shiny old tiny heavy broken strange beautiful precious magic curious smooth dusty rusty round crooked
sparkling wonderful simple lovely secret ancient bright colourful delicate enormous fancy glowing
handmade hollow huge long narrow odd plain polished pretty rare sharp short soft solid spare thick thin
tiny_little twisted useful valuable warm wide worn woven
""")

OBJECT = _words("""
lantern lamp candle mirror comb brush ring necklace bracelet crown coin map compass book letter pen
feather basket bucket bag sack barrel jar bottle cup bowl plate spoon fork kettle pot pan ladle broom
mop ladder rope hammer saw nail drill shovel rake spade wheel cart wagon sled boat raft oar anchor sail
flag kite ball doll puppet drum flute violin trumpet whistle bell harp guitar hat cap scarf glove mitten
coat cloak shirt skirt boot shoe sandal sock belt button ribbon needle thread blanket pillow quilt towel
carpet curtain chair stool table bench shelf clock watch telescope magnifier umbrella parasol walking_stick
fishing_rod net bow arrow shield helmet statue painting vase pebble shell pearl diamond crystal acorn
pine_cone horseshoe key_ring music_box hourglass spyglass teapot tea_cup wheelbarrow weather_vane
""")

# Landscape: "the mill", "a quiet valley".
PLACE = _words("""
forest mill river lake pond brook meadow hill mountain valley village town farm castle garden orchard
beach harbour island cave bridge church market field road crossroads wood swamp desert canyon cliff
waterfall spring well tower palace cottage inn barn stable workshop bakery school library museum
lighthouse windmill vineyard quarry mine glacier volcano jungle prairie moor heath park square fountain
ruin temple monastery observatory station shipyard dockyard greenhouse sawmill smithy tavern theatre
glade thicket clearing ravine lagoon bay coast cape marsh dune oasis plateau ridge
""")

PLACE_ADJ = _words("""
old quiet dark green wide deep small narrow foggy sunny windy lonely hidden famous peaceful busy steep
rocky snowy sandy misty distant empty ruined enchanted silent shady flowery wild gloomy pleasant crowded
noisy splendid forgotten
""")

# Where something lies or someone hides: "under the bench".
SPOT = _words("""
oak_tree apple_tree willow birch pine fir chestnut_tree cherry_tree rose_bush hedge fence gate doorstep
staircase cupboard haystack woodpile rock log stump bench well bridge roof chimney cellar attic window
fireplace oven wardrobe bookshelf carpet cart boat barrel anthill molehill fern mushroom puddle
waterwheel scarecrow signpost milestone statue lamp_post beehive dovecote trough manger
""")

FOOD = _words("""
bread cheese soup cake pie porridge honey jam butter milk apples pears plums cherries berries nuts
carrots turnips pumpkins potatoes beans peas cabbage mushrooms noodles pancakes waffles biscuits pudding
cream tea cocoa lemonade cider juice grapes melons peaches figs dates raisins chestnuts strawberries
raspberries blueberries tomatoes cucumbers radishes onions rice dumplings omelette salad stew toast
muffins gingerbread marmalade syrup yoghurt
""")

WEATHER = _words("""
sunny rainy foggy windy stormy snowy cold warm bright grey misty frosty hot cloudy fine lovely wet
chilly golden quiet clear dark
""")

DAYPART = _words("morning afternoon evening day night Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
SEASON = _words("spring summer autumn winter")

MOVE = _words("""
walked ran hopped wandered hurried strolled marched trotted crept raced climbed rushed skipped travelled
tiptoed stumbled paddled danced jogged limped dashed sneaked plodded rolled
""")

ADVERB = _words("""
slowly quickly quietly happily carefully bravely gladly softly proudly patiently cheerfully politely
eagerly gently calmly silently boldly nervously sadly merrily kindly loudly wisely suddenly secretly
hastily sleepily thoughtfully joyfully anxiously
""")

HOBBY = _words("""
singing dancing painting reading cooking baking fishing swimming climbing running sailing gardening
knitting sewing drawing writing dreaming hiking juggling skating sledging whistling collecting_stones
collecting_feathers collecting_shells counting_stars telling_stories telling_jokes building_boats
building_towers flying_kites playing_the_flute playing_the_drum playing_chess solving_riddles
picking_flowers picking_berries watching_birds watching_clouds watching_the_sea climbing_trees
feeding_the_ducks making_jam making_candles making_friends repairing_clocks carving_wood
weaving_baskets riding_ponies learning_songs
""")

SAID = _words("said whispered called answered replied cried shouted murmured laughed sighed")
ASKED = _words("asked wondered whispered called inquired")

GLAD = _words("""
happy proud glad excited cheerful calm curious grateful delighted relieved hopeful thankful amazed
comfortable content joyful pleased lucky satisfied
""")

SAD = _words("""
sad afraid tired angry worried hungry thirsty lonely nervous puzzled bored confused sleepy upset
disappointed jealous ashamed frightened unhappy anxious
""")

JOB = _words("""
baker miller farmer shepherd fisherman sailor carpenter smith tailor weaver gardener hunter teacher
doctor painter poet musician juggler magician wizard witch king queen prince princess knight captain
pirate merchant clockmaker shoemaker potter beekeeper ferryman innkeeper librarian postman watchman
astronomer cook
""")

KIN = _words("mother father sister brother grandmother grandfather aunt uncle cousin")

SOUND = _words("""
rustling knocking whistling humming scratching splashing ticking ringing singing sneezing snoring
creaking buzzing rumbling tapping sobbing giggling clapping
""")

PLANT = _words("""
roses tulips daisies lilies poppies sunflowers violets bluebells buttercups snowdrops clovers ferns
thistles nettles dandelions orchids pansies primroses marigolds lavender
""")

CREATURES = _words("""
birds bees frogs crickets butterflies fireflies owls squirrels ducks swallows bats geese rabbits mice
doves larks nightingales sparrows snails dragonflies
""")

COUNT = _words("two three four five six seven eight nine ten eleven twelve")

OBJECTS = _words("""
lanterns candles coins feathers baskets buckets bottles cups bowls plates spoons ropes nails wheels flags
kites balls drums bells hats scarves gloves boots buttons ribbons needles blankets pillows stools clocks
pebbles shells pearls acorns maps letters books stamps marbles stones sticks leaves flowers
""")

LESSON = _words("""
friendship patience courage kindness honesty sharing laughter music trust hope wisdom luck curiosity hard_work
good_advice good_company
""")

TIMESPAN = _words("an_hour a_day a_week a_month a_year a_minute a_moment half_an_hour a_long_time a_short_while")

# Containers of the retrieval facts; one kind per document.
CONTAINER = _words("box chest door gate cabinet drawer locker trunk")
CONTAINERS = _words("boxes chests doors gates cabinets drawers lockers trunks")

DRINK = _words("milk tea cocoa lemonade cider juice water")
DOING = _words("""
sleeping singing dancing painting reading cooking digging fishing swimming climbing knitting sewing dreaming
snoring working playing resting hiding waiting whistling
""")

CLASSES = {
    "animal": ANIMAL, "look": LOOK, "trait": TRAIT, "colour": COLOUR, "thingadj": THING_ADJ, "object": OBJECT,
    "place": PLACE, "placeadj": PLACE_ADJ, "spot": SPOT, "food": FOOD, "weather": WEATHER, "daypart": DAYPART,
    "season": SEASON, "move": MOVE, "adverb": ADVERB, "hobby": HOBBY, "said": SAID, "asked": ASKED,
    "glad": GLAD, "sad": SAD, "job": JOB, "kin": KIN, "sound": SOUND, "plant": PLANT, "creatures": CREATURES,
    "count": COUNT, "objects": OBJECTS, "lesson": LESSON, "timespan": TIMESPAN, "container": CONTAINER,
    "containers": CONTAINERS, "drink": DRINK, "doing": DOING,
    "namef": NAME_F, "namem": NAME_M, "name": NAME_F + NAME_M,
    "value": tuple(str(n) for n in range(100, 1000)),
}

GENDER = {**{n: "f" for n in NAME_F}, **{n: "m" for n in NAME_M}}

PRONOUN = {
    "he": {"f": "she", "m": "he"},
    "him": {"f": "her", "m": "him"},
    "his": {"f": "her", "m": "his"},
    "himself": {"f": "herself", "m": "himself"},
}
