%% A host that tells the test process what it was asked, and answers as the test has set it.
%%
%% Messages it takes through handle_info/2: `{fake, events, [Event]}' come out as events,
%% `{fake, set, Callback, Answer}' is the answer to the next calls of that callback.
-module(nats_gateway_host_fake).

-behaviour(nats_gateway_host).

-export([connect/1, ready/1, publish/3, subscribe/3, subscribe_again/3, unsubscribe/2, barrier/2]).
-export([handle_info/2, handle_call/3]).
-export([decline/2, undelivered/2, report/2, disconnect/2]).
-export([ask_server/1]).
-export([ask_store/3]).
-export([client/1]).

-include("nats_gateway.hrl").


%% A client of this host, for `nats_gateway_channel:init/2'.
client(Config) ->
    #{
        connect => #{},
        client_id => 7,
        transport => tcp,
        listener => <<"tcp:test">>,
        peername => {{127, 0, 0, 1}, 50000},
        sockname => {{127, 0, 0, 1}, 4222},
        config => Config
    }.

connect(Client = #{config := Config}) ->
    tell({connect, maps:get(connect, Client)}),
    Answers = maps:get(fake, Config, #{}),
    Session = (maps:get(session, Answers, #{}))#{
        mountpoint => maps:get(mountpoint, Config), clientid => <<"fake">>
    },
    case maps:get(connect, Answers, ok) of
        ok -> {ok, Session, Answers};
        wait -> {wait, Answers};
        {error, Reason} -> {error, Reason}
    end.

ready(Answers) ->
    case maps:get(ready, Answers, ok) of
        ok -> ok;
        wait -> {wait, Answers}
    end.

publish(Pubs, Options, Answers) ->
    tell({publish, Pubs, Options}),
    case maps:get(publish, Answers, {ok, []}) of
        {ok, Rejections} -> {ok, Rejections, Answers};
        wait -> {wait, Answers};
        {stop, Reason} -> {stop, Reason, Answers}
    end.

subscribe(Key, Options, Answers) ->
    tell({subscribe, Key, Options}),
    case maps:get(subscribe, Answers, ok) of
        {stop, Reason} -> {stop, Reason, Answers};
        Answer -> {Answer, Answers}
    end.

subscribe_again(Keys, Options, Answers) ->
    tell({subscribe_again, lists:sort(Keys), Options}),
    case maps:get(subscribe_again, Answers, {ok, []}) of
        {ok, Refusals} -> {ok, Refusals, Answers};
        wait -> {wait, Answers};
        {stop, Reason} -> {stop, Reason, Answers}
    end.

unsubscribe(Key, Answers) ->
    tell({unsubscribe, Key}),
    Answers.

barrier(_, Answers) ->
    tell(barrier),
    {maps:get(barrier, Answers, ok), Answers}.

handle_info({fake, events, Events}, Answers) -> {Events, Answers};
handle_info({fake, set, Callback, Answer}, Answers) -> {[], Answers#{Callback => Answer}};
handle_info(_, _) -> ignore.

handle_call(kick, _, Answers) ->
    {ok, [{close, kicked}], Answers};
handle_call({Name, Key}, Told, Answers) ->
    #{Name := Ask} = Told,
    tell({Name, Key, Ask(Key)}),
    {ok, [], Answers}.

%% Of all names but one.
ask_server(#{name := <<"NOBODY">>}) ->
    no_responders;
ask_server(Request) ->
    tell({ask_server, Request}),
    ok.

%% Of all subjects but one.
ask_store(#pub{subject = <<"$KV.nobody">>}, _, Answers) ->
    {no_responders, Answers};
ask_store(#pub{subject = Subject}, Buckets, Answers) ->
    tell({ask_store, Subject, Buckets}),
    {pass, Answers}.

decline(Deliveries, Answers) ->
    tell({decline, Deliveries}),
    Answers.

undelivered(Messages, Answers) ->
    tell({undelivered, Messages}),
    Answers.

report(Statistics, Answers) ->
    tell({report, Statistics}),
    Answers.

disconnect(Reason, _) ->
    tell({disconnect, Reason}),
    ok.

tell(Call) ->
    self() ! {host, Call},
    ok.
