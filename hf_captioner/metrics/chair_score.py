"""CHAIR: objects that a caption names and that are not in the image."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from .scores import Scores

# COCO's 80 categories and what captions call them. The list is ours: figures are comparable with each other, and those
# of the authors' list (`synonyms.txt` of their code, which `words` takes in its place) are a little different.
_COCO = """
person: man, woman, boy, girl, child, kid, baby, toddler, infant, guy, gentleman, lady, adult, teenager, teen, youth,
  pedestrian, passenger, player, skater, skateboarder, skier, snowboarder, surfer, swimmer, diver, biker, bicyclist,
  cyclist, motorcyclist, rider, jockey, cowboy, batter, catcher, pitcher, umpire, golfer, runner, jogger, athlete,
  climber, hiker, dancer, musician, guitarist, singer, worker, chef, cook, waiter, waitress, farmer, fisherman,
  policeman, officer, soldier, firefighter, fireman, doctor, nurse, driver, conductor, vendor, student, teacher,
  bride, groom, mother, father, mom, dad, daughter, son, sister, brother, crowd, audience, spectator, people
bicycle: bike, tricycle, bmx
car: automobile, sedan, taxi, cab, suv, minivan, van, jeep, hatchback
motorcycle: motorbike, motor bike, motor cycle, scooter, moped, dirt bike
airplane: plane, aeroplane, air plane, jet, jetliner, airliner, aircraft, biplane, seaplane, passenger jet
bus: minibus, trolleybus, double decker, school bus
train: locomotive, tram, subway, streetcar, passenger train
truck: pickup, lorry, firetruck, fire truck, dump truck, pickup truck
boat: ship, canoe, kayak, raft, sailboat, yacht, ferry, gondola, rowboat, motorboat, speedboat, dinghy, vessel, barge
traffic light: traffic signal, stop light, stoplight, street light, streetlight
fire hydrant: hydrant
stop sign:
parking meter:
bench: pew
bird: ostrich, owl, seagull, gull, goose, duck, parakeet, falcon, robin, pelican, waterfowl, heron, hummingbird,
  mallard, finch, pigeon, sparrow, seabird, osprey, blackbird, fowl, chicken, rooster, swan, parrot, crow, eagle,
  peacock, flamingo, baby bird, adult bird
cat: kitten, kitty, tabby, feline, baby cat, adult cat
dog: puppy, pup, canine, poodle, beagle, pug, terrier, dachshund, collie, bulldog, labrador, retriever, greyhound,
  chihuahua, hound, spaniel, corgi, dalmatian, rottweiler, husky, schnauzer, baby dog, adult dog
horse: colt, pony, foal, stallion, mare, mustang, racehorse, baby horse, adult horse
sheep: lamb, ram, ewe, goat, baby sheep, adult sheep
cow: cattle, ox, oxen, calf, bull, bison, buffalo, heifer, baby cow, adult cow
elephant: baby elephant, adult elephant
bear: panda, cub, grizzly, baby bear, adult bear
zebra: baby zebra, adult zebra
giraffe: baby giraffe, adult giraffe
backpack: knapsack, rucksack, book bag
umbrella: parasol
handbag: purse, wallet, tote bag
tie: necktie, bow tie, bowtie
suitcase: suit case, luggage, briefcase
frisbee:
skis: ski
snowboard:
sports ball: ball
kite:
baseball bat: bat
baseball glove: mitt, baseball mitt, catcher 's mitt
skateboard:
surfboard: longboard, boogie board, paddleboard, wakeboard
tennis racket: racket, racquet, tennis racquet
bottle: wine bottle, beer bottle, water bottle
wine glass: wineglass
cup: mug, teacup, coffee cup
fork:
knife: pocketknife
spoon:
bowl:
banana:
apple:
sandwich: burger, cheeseburger, hamburger, panini
orange:
broccoli:
carrot:
hot dog: hotdog
pizza:
donut: doughnut, bagel
cake: cheesecake, cupcake, shortcake, pancake, birthday cake
chair: seat, armchair, recliner, stool
couch: sofa, loveseat, futon, settee
potted plant: houseplant, plant
bed: mattress, bunk bed
dining table: table, desk
toilet: urinal, commode, lavatory, toilet seat
tv: television, monitor, televison
laptop: laptop computer, notebook computer, macbook
mouse: computer mouse
remote: remote control
keyboard:
cell phone: phone, mobile phone, cellphone, smartphone, telephone, iphone
microwave: microwave oven
oven: stove, stove top, stove top oven
toaster:
sink: washbasin
refrigerator: fridge, freezer
book: novel, magazine, textbook
clock: clock tower
vase:
scissors:
teddy bear: teddy, teddybear, stuffed bear
hair drier: hairdryer, hair dryer, blow dryer
toothbrush:
"""
# Not what their words say one by one.
_OTHER = ("home plate", "orange juice", "mouse pad", "bed sheet", "train track", "train station", "bus stop")
_IRREGULAR = {"man": "men", "woman": "women", "child": "children", "goose": "geese"}
_IRREGULAR |= {"mouse": "mice", "knife": "knives", "calf": "calves", "policeman": "policemen", "fireman": "firemen"}
_IRREGULAR |= {"fisherman": "fishermen", "gentleman": "gentlemen"}


def object_words(objects: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """
    The words of captions that name objects, as [`chair`] takes them.

    Args:
        objects: from an object to other words for it; its own name need not be among them.

    Returns:
        From every word, in the singular and the plural, to its object.

    Examples:
        >>> from hf_captioner.metrics import object_words
        >>> object_words({"dog": ["puppy"]})
        {'dog': 'dog', 'dogs': 'dog', 'puppy': 'dog', 'puppies': 'dog'}
    """
    found: dict[str, str] = {}
    for name, others in objects.items():
        for word in (name, *others):
            for form in (word, plural(word)):
                found.setdefault(form, name)
    return found


def plural(word: str) -> str:
    """Of an English noun, or of a phrase that ends in one."""
    before, space, last = word.rpartition(" ")
    if last in _IRREGULAR:
        last = _IRREGULAR[last]
    elif last.endswith(("s", "x", "z", "ch", "sh")):
        last += "es"
    elif last.endswith("y") and last[-2:-1] not in "aeiou":
        last = last[:-1] + "ies"
    else:
        last += "s"
    return before + space + last


def _read(text: str) -> dict[str, list[str]]:
    lines = text.strip().replace(",\n", ", ").splitlines()
    pairs = [line.split(":") for line in lines]
    return {name.strip(): [word.strip() for word in words.split(",") if word.strip()] for name, words in pairs}


COCO_WORDS: dict[str, str] = object_words(_read(_COCO))
COCO_WORDS |= {word: "" for other in _OTHER for word in (other, plural(other))}


def named_objects(caption: Sequence[str], words: Mapping[str, str]) -> list[str]:
    """The objects that a tokenised caption names, one for every mention, in order. Of words that begin at the same
    place the longest phrase counts ("hot dog" is no dog); a phrase of the empty object names nothing."""
    longest = max((word.count(" ") + 1 for word in words), default=0)
    found, place = [], 0
    while place < len(caption):
        for length in range(longest, 0, -1):
            phrase = " ".join(caption[place : place + length])
            if phrase in words and place + length <= len(caption):
                if words[phrase]:
                    found.append(words[phrase])
                place += length
                break
        else:
            place += 1
    return found


def chair(
    candidates: Sequence[Sequence[str]],
    objects: Sequence[Iterable[str]],
    references: Sequence[Sequence[Sequence[str]]],
    words: Mapping[str, str] = COCO_WORDS,
) -> dict[str, Scores]:
    """CHAIR (Rohrbach et al. 2018, section 2): lower is better. What is in an image are its annotated objects and, as
    in the paper, those that its references name.

    Args:
        candidates: B captions, each a list of words.
        objects: for each of B images the names of the objects in it.
        references: B lists of captions, each a list of words.
        words: from what captions say to the objects' names, in the singular and the plural (see [`object_words`]); by
            default those of COCO's 80 categories.

    Returns:
        `chair_i`, the share of mentions whose object is not there, over all images together, and `chair_s`, the share
        of captions with such a mention.

    Raises:
        ValueError: there are more or fewer images with objects, or with lists of references, than captions.

    Examples:
        >>> from hf_captioner.metrics import chair, tokenize
        >>> candidates = tokenize(["a dog and two cats on a sofa", "a man rides a horse"])
        >>> objects = [["dog", "couch"], ["person", "horse"]]  # a sofa is COCO's couch; there is no cat
        >>> scores = chair(candidates, objects, references=[[], []])
        >>> scores["chair_i"].corpus, scores["chair_s"].corpus
        (0.2, 0.5)
    """
    if len(objects) != len(candidates):
        raise ValueError(f"objects must be one list for each of the {len(candidates)} captions, got {len(objects)}")
    if len(references) != len(candidates):
        raise ValueError(
            f"references must be one list for each of the {len(candidates)} captions, got {len(references)}"
        )
    statistics = np.zeros((len(candidates), 2))
    for image, (candidate, truths) in enumerate(zip(candidates, references, strict=True)):
        there = {name for truth in truths for name in named_objects(truth, words)} | set(objects[image])
        named = named_objects(candidate, words)
        statistics[image] = sum(name not in there for name in named), len(named)
    return {"chair_i": Scores(statistics, _share), "chair_s": Scores.from_mean(statistics[:, 0] > 0)}


def _share(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] / np.maximum(sums[..., 1], 1)
