%% When the host of a connection is told its statistics: soon after something has happened, and every
%% few seconds while there is traffic.
-module(nats_gateway_report_times).

-export([new/1]).
-export([watched/1]).
-export([is_on/1]).
-export([next/2]).
-export([reported/2]).

-export_type([times/0]).

-define(REPORT_MS, 5000).
%% Who watches the gateway wants to see rates.
-define(REPORT_WATCHED_MS, 1000).
%% What somebody does who has been quiet is looked for soon.
-define(REPORT_SOON_MS, 250).

-record(times, {
    %% whether the host wants to know them
    is_on :: boolean(),
    longest = ?REPORT_MS :: pos_integer(),
    %% milliseconds of monotonic time
    last = never :: never | integer(),
    %% between the last two
    ms = ?REPORT_SOON_MS :: pos_integer()
}).

-opaque times() :: #times{}.

-spec new(IsOn :: boolean()) -> times().
new(IsOn) -> #times{is_on = IsOn}.

-spec watched(times()) -> times().
watched(Times) -> Times#times{is_on = true, longest = ?REPORT_WATCHED_MS}.

-spec is_on(times()) -> boolean().
is_on(#times{is_on = IsOn}) -> IsOn.

%% In how many milliseconds the next report is due.
-spec next(NowMs :: integer(), times()) -> {pos_integer(), times()}.
next(Now, Times) ->
    Ms = ms(Now, Times),
    {Ms, Times#times{ms = Ms}}.

ms(_, #times{last = never}) -> ?REPORT_SOON_MS;
ms(Now, #times{last = Last, longest = Longest}) when Now - Last > Longest -> ?REPORT_SOON_MS;
ms(_, #times{ms = Ms, longest = Longest}) -> min(2 * Ms, Longest).

-spec reported(NowMs :: integer(), times()) -> times().
reported(Now, Times) -> Times#times{last = Now}.
