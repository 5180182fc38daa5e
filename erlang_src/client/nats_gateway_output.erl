%% The work that a channel has left for a client that is behind.
%%
%% A channel returns about a slice of output at a time. The steps that are left wait here until the
%% slice has been sent, and later events of the host wait behind them. Messages that must not
%% overtake the +OK of the current operation are held here, too.
-module(nats_gateway_output).

-export([new/0]).
-export([is_behind/1]).
-export([bytes/1]).
-export([left/2]).
-export([later/2]).
-export([take/1]).
-export([hold/3]).
-export([holds/1]).
-export([release/1]).
-export([drop/1]).

-include("nats_gateway.hrl").

-export_type([output/0, step/0]).

%% A piece of work for a client: an event of the host, or a part of the work for one.
-type step() ::
    nats_gateway_host:event()
    %% deliveries that the login permits
    | {permitted, [#delivery{}]}
    %% messages with the sids that they go to
    | {frames, [#message{}]}
    %% go on with the operations that waited for the steps before this one
    | resume
    %% the password has been compared
    | {judged, nats_gateway_login:verdict() | busy}.

-record(output, {
    %% steps to do when the output that was returned last has been sent
    left = [] :: [step()],
    %% events of the host since then, latest first
    later = [] :: [step()],
    %% messages that are held back, latest first
    held = [] :: [#message{}],
    %% about how many bytes the client will be sent for these three
    bytes = 0 :: non_neg_integer()
}).

-opaque output() :: #output{}.

-spec new() -> output().
new() -> #output{}.

%% Whether there are steps that wait for the output to be sent.
-spec is_behind(output()) -> boolean().
is_behind(#output{left = [], later = []}) -> false;
is_behind(#output{}) -> true.

-spec bytes(output()) -> non_neg_integer().
bytes(#output{bytes = Bytes}) -> Bytes.

%% Keeps steps for the next slice.
-spec left([step()], output()) -> output().
left(Steps, Output = #output{bytes = Bytes}) ->
    Output#output{left = Steps, bytes = Bytes + nats_gateway_delivering:bytes(Steps)}.

%% Puts steps behind all others.
-spec later([step()], output()) -> output().
later(Steps, Output = #output{later = Later, bytes = Bytes}) ->
    Output#output{
        later = lists:reverse(Steps, Later), bytes = Bytes + nats_gateway_delivering:bytes(Steps)
    }.

%% Takes all steps, in order.
-spec take(output()) -> {[step()], output()}.
take(Output = #output{left = Left, later = Later}) ->
    {Left ++ lists:reverse(Later), drop(Output)}.

-spec hold([#message{}], Bytes :: non_neg_integer(), output()) -> output().
hold(Messages, More, Output = #output{held = Held, bytes = Bytes}) ->
    Output#output{held = lists:reverse(Messages, Held), bytes = Bytes + More}.

-spec holds(output()) -> boolean().
holds(#output{held = Held}) -> Held =/= [].

%% Takes the messages that were held back, as a step.
-spec release(output()) -> {step(), output()}.
release(Output = #output{held = Held, bytes = Bytes}) ->
    Frames = {frames, lists:reverse(Held)},
    {Frames, Output#output{held = [], bytes = Bytes - nats_gateway_delivering:bytes([Frames])}}.

%% Drops all steps, but keeps the messages that are held back.
-spec drop(output()) -> output().
drop(#output{held = Held}) ->
    #output{held = Held, bytes = nats_gateway_delivering:bytes([{frames, Held}])}.
