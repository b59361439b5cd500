// What the exported folder's files say, in the form that this page needs it.

export interface ImageSettings {
  do_resize: boolean;
  do_rescale: boolean;
  do_normalize: boolean;
  size: { height: number; width: number };
  resample: number;
  rescale_factor: number;
  image_mean: number[];
  image_std: number[];
}

/** Of generation_config.json; options that are not there have transformers' defaults. */
export interface SearchSettings {
  decoder_start_token_id: number;
  pad_token_id: number;
  eos_token_id: number | number[];
  num_beams: number;
  max_new_tokens: number;
  min_new_tokens: number;
  length_penalty: number;
  early_stopping: boolean | "never";
  no_repeat_ngram_size: number;
  suppress_tokens: number[];
}

export interface ModelSettings {
  score_temperature?: number;
  min_score?: number | null;
}

const DEFAULTS = {
  num_beams: 1,
  min_new_tokens: 0,
  length_penalty: 1,
  early_stopping: false,
  no_repeat_ngram_size: 0,
  suppress_tokens: [],
};

/** Settings with defaults for what is missing or null. */
export function searchSettings(given: object): SearchSettings {
  const said = Object.entries(given).filter(([, value]) => value !== null);
  return { ...DEFAULTS, ...Object.fromEntries(said) } as unknown as SearchSettings;
}
