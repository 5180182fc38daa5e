%% The key/value store over the retained messages of an MQTT 5 broker.
%%
%% A value that a gateway has written carries its revision in a user property, together with a digest
%% of topic and payload: an MQTT client may copy the properties of a message to another one. The other
%% values have a revision of `nats_gateway_mqtt_revisions'. The broker checks each right.
-module(nats_gateway_mqtt_kv).

-behaviour(nats_gateway_kv_store).

-export([new/2]).
-export([where/0]).
-export([open/2]).
-export([hand_over/2]).
-export([read/2]).
-export([write/4]).
-export([fold/4]).
-export([subscribe/2]).
-export([change/2]).

-include("nats_gateway.hrl").
-include("nats_gateway_mqtt.hrl").

-type context() :: #{
    login := nats_gateway_mqtt_link:login(),
    secret := binary(),
    max_packet := pos_integer(),
    %% reads and writes; and brings the changes of a watcher
    link => pid(),
    watch => pid()
}.

-define(REVISION, <<"Nats-KV-Revision">>).
-define(NOT_AUTHORIZED, 16#87).

-spec new(nats_gateway_mqtt_link:login(), #{secret := binary(), max_packet := pos_integer()}) ->
    nats_gateway_kv_store:store().
new(Login, Options) -> {?MODULE, Options#{login => Login}}.

-spec where() -> nats_gateway_kv_store:where().
where() -> gateway.

-spec open(session | consumer, context()) -> {context(), pid()}.
open(session, Context) ->
    Link = connect(Context),
    {Context#{link => Link}, Link};
open(consumer, Context) ->
    Watch = connect(Context),
    {Context#{watch => Watch}, Watch}.

connect(#{login := Login}) ->
    case nats_gateway_mqtt_link:start_link(Login) of
        {ok, Link} -> Link;
        {error, {shutdown, {refused, Reason}}} -> fail({refused, Reason});
        {error, {shutdown, no_qos}} -> fail(<<"the broker has no QoS 1">>);
        {error, _} -> fail(<<"the broker cannot be reached">>)
    end.

-spec fail({refused, byte()} | binary()) -> no_return().
fail({refused, Reason}) ->
    fail(<<"the broker refuses it: ", (atom_to_binary(nats_gateway_mqtt_reason:name(Reason)))/binary>>);
fail(Text) ->
    throw({store, {failed, Text}}).

%% The connection that brings the changes goes on.
-spec hand_over(context(), context()) -> context().
hand_over(OfSession, #{watch := Watch}) -> OfSession#{watch => Watch}.

-spec read([Topic :: binary()], context()) -> [{ok, nats_gateway_kv_store:value()} | none].
read(Topics, Context) ->
    Found = found(Topics, #{}, Context),
    [maps:get(Topic, Found, none) || Topic <- Topics].

%% A broker may drop what it sends with QoS 0 while the socket takes no more: Mosquitto 2.0 dropped two
%% thirds of the messages for 256 subscriptions, 64 KiB each. So what is missing is asked for again
%% until nothing more comes.
found(Topics, Before, Context = #{link := Link}) ->
    Value = fun(Packet = #publish{topic = Topic}) -> {Topic, {ok, value(Packet, Context)}} end,
    Found = maps:from_list(ask(read, Link, {Topics, Value})),
    All = maps:merge(Before, Found),
    case [Topic || Topic <- Topics, not is_map_key(Topic, Found)] of
        Missing = [_ | _] when map_size(Found) > 0 -> found(Missing, All, Context);
        _ -> All
    end.

ask(Function, Link, Request) ->
    try nats_gateway_mqtt_link:Function(Link, Request) of
        {ok, Found} -> Found;
        {error, Failure} -> fail(Failure)
    catch
        exit:_ -> fail(<<"the broker cannot be reached">>)
    end.

value(Packet, Context) -> value(Packet, revision_of(Packet), Context).

revision_of(#publish{topic = Topic, payload = Payload, user_properties = Pairs}) ->
    Digest = digest(Topic, Payload),
    case carried(Pairs, Digest) of
        {ok, Carried} -> Carried;
        none -> nats_gateway_mqtt_revisions:of_value(Topic, Digest)
    end.

%% MQTT does not say when a message was published, but a revision is a time.
at(Revision) -> Revision div 1000.

value(Packet = #publish{topic = Topic, payload = Payload, user_properties = Pairs}, Revision, Context) ->
    Others = [Pair || Pair = {Name, _} <- Pairs, not is_own(Name)],
    #delivery{headers = Headers} = nats_gateway_mqtt_mapping:delivery(
        Packet#publish{user_properties = Others}, {undefined, Topic}, maps:get(secret, Context)
    ),
    #{
        revision => Revision,
        at => at(Revision),
        headers => Headers,
        payload => Payload
    }.

is_own(?REVISION) -> true;
is_own(Name) -> string:lowercase(Name) =:= <<"kv-operation">>.

digest(Topic, Payload) ->
    <<Digest:64, _/binary>> = crypto:hash(sha256, [integer_to_binary(byte_size(Topic)), $:, Topic, Payload]),
    Digest.

carried(Pairs, Digest) ->
    Code = integer_to_binary(Digest),
    case lists:keyfind(?REVISION, 1, Pairs) of
        {_, Value} ->
            case binary:split(Value, <<".">>) of
                [Revision, Code] -> revision(Revision);
                _ -> none
            end;
        false ->
            none
    end.

revision(Text) ->
    case string:to_integer(Text) of
        {Revision, <<>>} when Revision > 0, Revision < 1 bsl 53 -> {ok, Revision};
        _ -> none
    end.

-spec write(Topic :: binary(), nats_gateway_kv_store:expected(), Write :: tuple(), context()) ->
    {ok, pos_integer()} | {error, nats_gateway_kv_store:write_error()}.
write(Topic, Expected, Write, Context) ->
    nats_gateway_mqtt_revisions:locked(Topic, fun() -> write_alone(Topic, Expected, Write, Context) end).

write_alone(Topic, Expected, Write, Context) ->
    Last =
        case read([Topic], Context) of
            [{ok, #{revision := Known}}] -> Known;
            [none] -> 0
        end,
    case Expected of
        any -> publish(Topic, Last, Write, Context);
        Last -> publish(Topic, Last, Write, Context);
        _ -> {error, {wrong_last, Last}}
    end.

publish(Topic, Last, Write, #{link := Link, max_packet := MaxPacket, secret := Secret}) ->
    {Block, Payload, Retain} =
        case Write of
            {delete, Headers} -> {Headers, <<>>, true};
            {put, Headers, Value, undefined} -> {Headers, Value, true};
            {put, Headers, Value, Ttl} -> {Headers, Value, {true, Ttl, undefined}}
        end,
    Pub = #pub{subject = <<>>, topic = Topic, headers = Block, payload = Payload},
    Digest = digest(Topic, Payload),
    Revision = max(erlang:system_time(microsecond), Last + 1),
    Mapped = #publish{user_properties = Pairs} = nats_gateway_mqtt_mapping:publish(Pub, 1, check, Secret),
    Own = {?REVISION, <<(integer_to_binary(Revision))/binary, $., (integer_to_binary(Digest))/binary>>},
    Packet = Mapped#publish{retain = Retain, user_properties = Pairs ++ [Own]},
    Fits =
        nats_gateway_mqtt_nif:is_topic(Topic) andalso
            nats_gateway_mqtt_mapping:fits(Packet, Block, MaxPacket),
    case Fits of
        true ->
            [] = ask(publish, Link, Packet),
            ok = nats_gateway_mqtt_revisions:seen(Topic, Digest, Revision),
            {ok, Revision};
        false ->
            {error, {failed, <<"the broker takes no message of this size, or no topic of this name">>}}
    end.

-spec fold(Filter :: binary(), fun((binary(), nats_gateway_kv_store:summary(), Acc) -> Acc), Acc, context()) ->
    Acc
when
    Acc :: term().
fold(Filter, Fun, Acc, #{link := Link}) ->
    lists:foldl(
        fun({Topic, Summary}, Inner) -> Fun(Topic, Summary, Inner) end,
        Acc,
        ask(read, Link, {[Filter], fun summary/1})
    ).

%% Called for each message when it comes. The topic is a part of many bytes from the socket, which it
%% would keep.
summary(Packet = #publish{topic = Topic, payload = Payload}) ->
    Revision = revision_of(Packet),
    {binary:copy(Topic), #{revision => Revision, at => at(Revision), size => byte_size(Payload)}}.

-spec subscribe(Filter :: binary(), context()) -> ok.
subscribe(Filter, #{watch := Watch}) ->
    [] = ask(watch, Watch, Filter),
    ok.

%% Only what the publisher wants to be retained is a value.
-spec change(Message :: term(), context()) -> nats_gateway_kv_store:change() | ignore.
change({nats_gateway_mqtt_link, Packet = #publish{retain = true}}, Context) ->
    #publish{topic = Topic, payload = Payload, user_properties = Pairs} = Packet,
    Value = value(Packet, Context),
    case Payload of
        <<>> -> {delete, Topic, Value#{headers := deleted(Pairs)}};
        _ -> {put, Topic, Value}
    end;
change(_, _) ->
    ignore.

deleted(Pairs) ->
    case [Value || {Name, Value} <- Pairs, string:lowercase(Name) =:= <<"kv-operation">>] of
        [<<"PURGE">> | _] -> nats_gateway_kv_answer:deleted(<<"PURGE">>);
        _ -> nats_gateway_kv_answer:deleted(<<"DEL">>)
    end.
