#!/usr/bin/env python3
"""Makes src/redact/rules/calling_codes.tsv and tests/parity/redaction/phones.tsv from the metadata of libphonenumber.

    pip install phonenumberslite==9.0.42 && scripts/parity/redaction_phones.py

The first: what a number behind each calling code looks like. The second: libphonenumber's own example numbers of every region, as
it writes them for abroad and at home; the tests plant them.
"""

import re
from pathlib import Path

import phonenumbers
from phonenumbers import PhoneNumberFormat, PhoneNumberType

ROOT = Path(__file__).resolve().parents[2]
KINDS = {"fixed": PhoneNumberType.FIXED_LINE, "mobile": PhoneNumberType.MOBILE}


def main():
    codes, examples = [], []
    for code, regions in sorted(phonenumbers.COUNTRY_CODE_TO_REGION_CODE.items()):
        patterns = []
        for region in regions:
            entity = region == "001"
            metadata = (phonenumbers.PhoneMetadata.metadata_for_nongeo_region(code) if entity
                        else phonenumbers.PhoneMetadata.metadata_for_region(region))
            pattern = metadata.general_desc.national_number_pattern
            if pattern and pattern not in patterns:
                patterns.append(pattern)
            for kind, number_type in KINDS.items():
                number = None if entity else phonenumbers.example_number_for_type(region, number_type)
                if number:
                    abroad, home = (phonenumbers.format_number(number, form)
                                    for form in (PhoneNumberFormat.INTERNATIONAL, PhoneNumberFormat.NATIONAL))
                    examples.append(f"{region}\t{kind}\t{abroad}\t{home}\n")
        pattern = re.sub(r"\s", "", "|".join(patterns))
        codes.append(f"{code}\t{pattern}\n")
    head = f"# libphonenumber {phonenumbers.__version__}, Apache-2.0, by scripts/parity/redaction_phones.py.\n"
    (ROOT / "src/redact/rules/calling_codes.tsv").write_text(head + "".join(codes))
    out = ROOT / "tests/parity/redaction/phones.tsv"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(head + "".join(examples))
    print(f"{len(codes)} calling codes, {len(examples)} examples")


if __name__ == "__main__":
    main()
