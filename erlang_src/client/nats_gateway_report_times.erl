%% Decides when the host of a connection gets its statistics: soon after something has happened, and
%% every few seconds while there is traffic.
-module(nats_gateway_report_times).

-export([new/1]).
-export([watched/1]).
-export([is_on/1]).
-export([next/2]).
-export([reported/2]).

-export_type([times/0]).

-define(REPORT_MS, 5000).
%% The monitoring endpoints show rates, so they need reports more often.
-define(REPORT_WATCHED_MS, 1000).
%% After a quiet time the first report comes this soon.
-define(REPORT_SOON_MS, 250).

-record(times, {
    %% whether anybody wants the reports
    is_on :: boolean(),
    longest = ?REPORT_MS :: pos_integer(),
    %% the last report, in milliseconds of monotonic time
    last = never :: never | integer(),
    %% the milliseconds between the last two reports
    ms = ?REPORT_SOON_MS :: pos_integer()
}).

-opaque times() :: #times{}.

-spec new(IsOn :: boolean()) -> times().
new(IsOn) -> #times{is_on = IsOn}.

-spec watched(times()) -> times().
watched(Times) -> Times#times{is_on = true, longest = ?REPORT_WATCHED_MS}.

-spec is_on(times()) -> boolean().
is_on(#times{is_on = IsOn}) -> IsOn.

%% The milliseconds until the next report.
-spec next(NowMs :: integer(), times()) -> {pos_integer(), times()}.
next(Now, Times) ->
    Ms = ms(Now, Times),
    {Ms, Times#times{ms = Ms}}.

ms(_, #times{last = never}) -> ?REPORT_SOON_MS;
ms(Now, #times{last = Last, longest = Longest}) when Now - Last > Longest -> ?REPORT_SOON_MS;
ms(_, #times{ms = Ms, longest = Longest}) -> min(2 * Ms, Longest).

-spec reported(NowMs :: integer(), times()) -> times().
reported(Now, Times) -> Times#times{last = Now}.
