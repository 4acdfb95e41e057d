"""The names and phrases that the invented office is made of."""


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


FIRST_NAMES = _list(
    """
    Ada, Bela, Carla, Deniz, Elif, Farid, Greta, Hugo, Ines, Jonas, Katja, Lars, Mira, Nils, Olga, Pavel, Quinn,
    Rosa, Selim, Tara, Udo, Vera, Wanda, Ximena, Yusuf, Zora, Amir, Britt, Cosmo, Dora, Emil, Fenja, Goran, Hilde,
    Igor, Jana, Kofi, Lotte, Marek, Noor
    """
)
LAST_NAMES = _list(
    """
    Abel, Brandt, Castro, Dahl, Eriksen, Farkas, Gruber, Haddad, Ivanov, Jensen, Keller, Lindqvist, Moreau, Novak,
    Okafor, Petrov, Quist, Rossi, Santos, Tanaka, Ulrich, Vogel, Weiss, Xu, Yilmaz, Zeller, Almeida, Bauer, Costa,
    Demir, Engel, Fischer, Gallo, Hansen, Ito, Jansen, Kowalski, Larsen, Meyer, Nagy, Olsen, Pereira
    """
)
PROJECTS = _list(
    """
    Falcon, Heron, Osprey, Kestrel, Curlew, Plover, Bittern, Avocet, Dunlin, Merlin, Petrel, Godwit, Lapwing,
    Redstart, Siskin, Wheatear, Wryneck, Nuthatch, Pipit, Shrike, Sanderling, Fulmar, Gannet, Whimbrel
    """
)
VENDORS = _list(
    """
    Brightwater Logistics, Oakfield Print, Nordlicht Energy, Calder Tools, Marlow Catering, Pinnacle Cleaning,
    Silverline Cabling, Tidewell Software, Umber Furniture, Verdant Gardens, Westgate Security, Yarrow Textiles,
    Zenith Copiers, Alder Glass, Birch Paper, Copperhill Metals, Driftwood Design, Eastbank Couriers
    """
)
GOODS = _list(
    """
    office paper, desk lamps, network cables, the spring catering, window cleaning, printer toner, forklift hire,
    safety boots, server racks, the trade fair stand, meeting chairs, garden work, parcel labels, coffee beans
    """
)
MEETINGS = _list(
    """
    kickoff, design review, retrospective, steering committee, customer demo, risk workshop
    """
)
PAPERS = _list(
    """
    final report, test plan, cost estimate, user manual, data sheet
    """
)
ROOMS = _list(
    """
    Amber, Basalt, Cedar, Dune, Ember, Fjord, Granite, Harbour, Indigo, Juniper
    """
)
TIMES = _list(
    """
    08:30, 09:15, 10:00, 11:45, 13:00, 13:30, 14:15, 15:30, 16:00, 16:45
    """
)
CITIES = _list(
    """
    Lisbon, Vienna, Porto, Ghent, Turin, Malmo, Gdansk, Utrecht, Bilbao, Leipzig, Bergen, Lyon, Basel, Zagreb,
    Tampere, Cork, Graz, Aarhus
    """
)
HOTELS = _list(
    """
    Hotel Meridian, Hotel Linden, Hotel Aurora, Hotel Bellevue, Hotel Castellan, Hotel Delphin, Hotel Estrella,
    Hotel Florentin, Hotel Galant, Hotel Horizon, Hotel Imperator, Hotel Jardin
    """
)
PURCHASES = _list(
    """
    coffee machines, payroll software, standing desks, company bicycles, door locks, projectors, phone system,
    archive shelves, welding robots, delivery vans, air filters, label printers, fire alarms, canteen ovens
    """
)
MONTHS = _list("January, February, March, April, May, June, July, August, September, October, November, December")
TRAVEL_DESK = "Travel Desk <travel@example.org>"

# subject, body
SMALL_TALK = (
    (
        "Lunch?",
        "Hi {reader},\n\nshall we have lunch on Thursday? {other} would join us.",
    ),
    (
        "Status of {project}",
        "Hi {reader},\n\n{project} is on track. {other} tests the last build, then we can show it.",
    ),
    (
        "{project} documents",
        "Hello {reader},\n\nI moved the {project} documents to the shared folder. Tell me if one is missing.",
    ),
    (
        "Question about {project}",
        "Hi {reader},\n\nwho can explain the interface of {project} to me? {other} sent me to you.",
    ),
    (
        "{vendor}",
        "Hi {reader},\n\n{vendor} called about the {goods}. I said that you would ring them back.",
    ),
    (
        "Delivery from {vendor}",
        "Hello {reader},\n\nthe delivery from {vendor} has come. The boxes are at the reception.",
    ),
    (
        "Out of office",
        "Thank you for your message. I am away this week. In urgent matters please write to {other}.",
    ),
    (
        "Printer again",
        "Hi {reader},\n\nthe printer on the second floor is stuck again. {other} has called somebody.",
    ),
    (
        "Photos from {city}",
        "Hi {reader},\n\nthe photos from {city} are online. The one with {other} on the bridge is the best.",
    ),
    (
        "{city} office",
        "Hi {reader},\n\nour colleagues in {city} ask whether {other} can give the talk on {project} again.",
    ),
    (
        "Thanks",
        "Hi {reader},\n\nthank you for your help with {project} yesterday, and thank {other} from me, too.",
    ),
    (
        "Timesheets",
        "Hi {reader},\n\nplease remember your timesheet. {other} closes the month tomorrow.",
    ),
    (
        "Training",
        "Hi {reader},\n\nthere is a place left in the training on spreadsheets. {other} liked it. Interested?",
    ),
    (
        "Interview",
        "Hi {reader},\n\ncan you take part in the interview on Monday? {other} is the candidate's contact.",
    ),
    (
        "Feedback on {project}",
        "Hi {reader},\n\nthe customer likes {project}, but finds it slow. {other} looks into it.",
    ),
    (
        "Newsletter",
        "This month: {city} opens a new warehouse, {project} wins a prize, and {other} runs a marathon.",
    ),
)
