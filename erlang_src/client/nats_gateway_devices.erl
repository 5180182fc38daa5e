%% The requests of one client to devices that answer on a topic of their own.
%%
%% Such a request becomes a command on the topic that a rule names. The answer topic is subscribed
%% before, as a subscription of the client at its broker which is not one of the client's sids. What
%% comes there goes to the reply subject of a request.
%%
%% An answer is for the oldest request that waits on its topic. If none waits, it is a further answer
%% to the request that was answered last. With an id in the topic, each request has a topic of its
%% own.
-module(nats_gateway_devices).

-export([new/1]).
-export([configure/2]).
-export([begin_anew/1]).
-export([take/3]).
-export([request/4]).
-export([subscribed/3]).
-export([is_subscribed/2]).
-export([lost/2]).
-export([cancel/2]).
-export([answers/4]).
-export([unused/2]).

-include("nats_gateway.hrl").

-export_type([devices/0]).

%% Requests are in the order of their ends. A number tells those apart that end at the same time.
-type id() :: {Until :: integer(), Number :: non_neg_integer()}.

-record(request, {id :: id(), reply_topic :: binary()}).

%% The requests with the same answer topic.
-record(topic, {
    waiting = queue:new() :: queue:queue(#request{}),
    answered = none :: none | #request{}
}).

-record(devices, {
    settings :: nats_gateway_device_config:devices(),
    number = 0 :: non_neg_integer(),
    %% the answer topics of the requests that wait, and of those that may get further answers
    waiting = gb_trees:empty() :: gb_trees:tree(id(), Topic :: binary()),
    answered = gb_trees:empty() :: gb_trees:tree(id(), Topic :: binary()),
    topics = #{} :: #{Topic :: binary() => #topic{}},
    %% until when an answer topic stays subscribed if there is no further request
    subscribed = #{} :: #{nats_gateway_host:key() => Until :: integer()},
    %% whether `unused/2' will be called
    timer = false :: boolean()
}).

-opaque devices() :: #devices{}.

%% Without rules there is nothing to keep, and nothing to look at for a message.
-spec new(nats_gateway_device_config:devices()) -> none | devices().
new(#{rules := []}) -> none;
new(Settings) -> #devices{settings = Settings}.

%% Requests that wait have the old timeout.
-spec configure(nats_gateway_device_config:devices(), none | devices()) -> none | devices().
configure(Settings, none) ->
    new(Settings);
configure(#{rules := []}, #devices{subscribed = Subscribed, timer = false}) when
    map_size(Subscribed) =:= 0
->
    none;
configure(Settings, Devices) ->
    Devices#devices{settings = Settings}.

%% The session at the broker is another one, so nothing is subscribed and nothing will come.
-spec begin_anew(none | devices()) -> none | devices().
begin_anew(none) -> none;
begin_anew(#devices{settings = Settings, timer = Timer}) -> #devices{settings = Settings, timer = Timer}.

%% Takes the publishes before the first request to a device, or this request if it comes first. The
%% first operation is a publish.
-spec take([nats_gateway_nif:op() | term()], Mountpoint :: binary(), devices()) ->
    {[#pub{}], Rest :: [term()]}
    | {request, #pub{}, no_topic | nats_gateway_device_rules:route(), Rest :: [term()]}.
take(Ops, Mountpoint, #devices{settings = #{rules := Rules}}) -> take(Ops, [], Mountpoint, Rules).

take([#pub{subject = <<"$", _/binary>>} = Pub | Rest], Taken = [_ | _], Mountpoint, Rules) ->
    case nats_gateway_publishing:may_be_answered_here(Pub) of
        true -> {lists:reverse(Taken), [Pub | Rest]};
        false -> take_publish(Pub, Rest, Taken, Mountpoint, Rules)
    end;
take([#pub{} = Pub | Rest], Taken, Mountpoint, Rules) ->
    take_publish(Pub, Rest, Taken, Mountpoint, Rules);
take(Rest, Taken, _, _) ->
    {lists:reverse(Taken), Rest}.

take_publish(Pub = #pub{reply_to = undefined}, Rest, Taken, Mountpoint, Rules) ->
    take(Rest, [Pub | Taken], Mountpoint, Rules);
take_publish(Pub = #pub{topic = Topic}, Rest, Taken, Mountpoint, Rules) ->
    case nats_gateway_device_rules:route(Topic, Mountpoint, Rules) of
        none -> take(Rest, [Pub | Taken], Mountpoint, Rules);
        Route when Taken =:= [] -> {request, Pub, Route, Rest};
        _ -> {lists:reverse(Taken), [Pub | Rest]}
    end.

%% What is to be done for a request. With `subscribe' the host is asked for the key, and this is called
%% again when it has it; the keys in the list are not needed any more. A client that has too many
%% requests under way has no responders for this one.
-spec request(#pub{}, no_topic | nats_gateway_device_rules:route(), NowMs :: integer(), devices()) ->
    {publish, Command :: #pub{}, devices()}
    | {subscribe, nats_gateway_host:key(), Unused :: [nats_gateway_host:key()], devices()}
    | no_responders.
request(_, no_topic, _, _) ->
    no_responders;
request(Pub = #pub{reply_topic = ReplyTopic}, Route = #{filter := Filter}, Now, Devices) ->
    #devices{settings = #{max_requests := Max}, subscribed = Subscribed} = Devices,
    Key = {undefined, Filter},
    Expired = #devices{waiting = Waiting} = expire(Now, Devices),
    case gb_trees:size(Waiting) < Max of
        %% Nobody can be subscribed to such a reply subject.
        true when not is_binary(ReplyTopic) ->
            {publish, command(Pub, Route), Expired};
        true when is_map_key(Key, Subscribed) ->
            {publish, command(Pub, Route), enter(ReplyTopic, Route, Key, Now, Expired)};
        true when map_size(Subscribed) < Max ->
            {subscribe, Key, [], Expired};
        true ->
            {Unused, NDevices} = make_room(Expired),
            {subscribe, Key, Unused, NDevices};
        false ->
            no_responders
    end.

%% All who are subscribed to the command's topic are told where the answer is awaited: MQTT 5 devices,
%% and NATS services.
command(Pub, #{command := Command, answer := Answer}) ->
    Pub#pub{topic = Command, reply_topic = Answer}.

enter(ReplyTopic, #{answer := Topic}, Key, Now, Devices) ->
    #devices{
        settings = #{timeout := Timeout, idle_timeout := IdleTimeout},
        number = Number,
        waiting = Waiting,
        topics = Topics,
        subscribed = Subscribed
    } = Devices,
    Id = {Now + Timeout, Number},
    Request = #request{id = Id, reply_topic = ReplyTopic},
    OfTopic = #topic{waiting = Queue} = maps:get(Topic, Topics, #topic{}),
    Devices#devices{
        number = Number + 1,
        waiting = gb_trees:insert(Id, Topic, Waiting),
        topics = Topics#{Topic => OfTopic#topic{waiting = queue:in(Request, Queue)}},
        subscribed = Subscribed#{Key := Now + max(Timeout, IdleTimeout)}
    }.

%% The key whose last request is the longest ago. There are fewer requests than keys, so it is one
%% without a request.
make_room(Devices = #devices{subscribed = Subscribed}) ->
    {_, Key} = lists:min([{Until, Key} || {Key, Until} <- maps:to_list(Subscribed)]),
    {[Key], Devices#devices{subscribed = maps:remove(Key, Subscribed)}}.

%% The host has the key. With `Ms' the caller calls `unused/2' after this time.
-spec subscribed(nats_gateway_host:key(), NowMs :: integer(), devices()) ->
    {none | Ms :: non_neg_integer(), devices()}.
subscribed(Key, Now, Devices = #devices{settings = Settings, subscribed = Subscribed}) ->
    #{timeout := Timeout, idle_timeout := IdleTimeout} = Settings,
    Stay = max(Timeout, IdleTimeout),
    NDevices = Devices#devices{subscribed = Subscribed#{Key => Now + Stay}, timer = true},
    case Devices#devices.timer of
        true -> {none, NDevices};
        false -> {Stay, NDevices}
    end.

-spec is_subscribed(nats_gateway_host:key(), none | devices()) -> boolean().
is_subscribed(_, none) -> false;
is_subscribed(Key, #devices{subscribed = Subscribed}) -> is_map_key(Key, Subscribed).

%% The broker has ended the subscription, so the next request subscribes again.
-spec lost(nats_gateway_host:key(), none | devices()) -> none | devices().
lost(_, none) ->
    none;
lost(Key, Devices = #devices{subscribed = Subscribed}) ->
    Devices#devices{subscribed = maps:remove(Key, Subscribed)}.

%% Nobody has got the command of the request with this reply subject, so nothing is to be waited for.
-spec cancel(ReplyTopic :: undefined | nats_gateway_nif:topic(), none | devices()) ->
    none | devices().
cancel(_, none) ->
    none;
cancel(ReplyTopic, Devices = #devices{waiting = Waiting, topics = Topics}) ->
    Found = [
        Id
     || {Id, Topic} <- gb_trees:to_list(Waiting),
        #topic{waiting = Queue} <- [maps:get(Topic, Topics)],
        queue:any(fun(#request{id = Of, reply_topic = To}) -> Of =:= Id andalso To =:= ReplyTopic end, Queue)
    ],
    case Found of
        [] -> Devices;
        _ -> forget_waiting(lists:last(Found), Devices)
    end.

%% -------------------------------------------------------------------------------------------
%% Answers

%% Puts the answers among the deliveries. A delivery for an answer topic stays, because the client may
%% have subscribed to this topic itself. Only a plain subscription of the requester gets the answer.
-spec answers([#delivery{}], NowMs :: integer(), nats_gateway_subscriptions:subscriptions(), devices()) ->
    {[#delivery{}], devices()}.
answers(Deliveries, Now, Subs, Devices) ->
    {Lists, NDevices} = lists:mapfoldl(
        fun(Delivery = #delivery{key = Key, topic = Topic}, Acc = #devices{subscribed = Subscribed}) ->
            case is_map_key(Key, Subscribed) andalso receiver(Topic, expire(Now, Acc)) of
                false -> {[Delivery], Acc};
                {none, NAcc} -> {[Delivery], NAcc};
                {ReplyTopic, NAcc} -> {[Delivery | answer(Delivery, ReplyTopic, Subs)], NAcc}
            end
        end,
        Devices,
        Deliveries
    ),
    {lists:append(Lists), NDevices}.

answer(Delivery, ReplyTopic, Subs) ->
    case nats_gateway_subscriptions:plain_sid(ReplyTopic, Subs) of
        undefined ->
            [];
        Sid ->
            Key = nats_gateway_subscriptions:key(Sid, Subs),
            [Delivery#delivery{key = Key, topic = ReplyTopic, id = undefined}]
    end.

receiver(Topic, Devices = #devices{topics = Topics, waiting = Waiting}) ->
    case Topics of
        #{Topic := #topic{waiting = Queue, answered = Answered} = OfTopic} ->
            case queue:out(Queue) of
                {{value, Request = #request{id = Id, reply_topic = ReplyTopic}}, NQueue} ->
                    NDevices = keep_answered(Request, Topic, forget_answered(Answered, Devices#devices{
                        waiting = gb_trees:delete(Id, Waiting),
                        topics = Topics#{Topic := OfTopic#topic{waiting = NQueue}}
                    })),
                    {ReplyTopic, NDevices};
                {empty, _} when Answered =/= none ->
                    {Answered#request.reply_topic, Devices};
                {empty, _} ->
                    {none, Devices}
            end;
        #{} ->
            {none, Devices}
    end.

%% There are at most as many that may get further answers as may wait.
keep_answered(Request = #request{id = Id}, Topic, Devices) ->
    #devices{settings = #{max_requests := Max}, answered = Answered, topics = Topics} = Devices,
    OfTopic = maps:get(Topic, Topics, #topic{}),
    Kept = Devices#devices{
        answered = gb_trees:insert(Id, Topic, Answered),
        topics = Topics#{Topic => OfTopic#topic{answered = Request}}
    },
    case gb_trees:size(Kept#devices.answered) > Max of
        true ->
            {Oldest, _} = gb_trees:smallest(Kept#devices.answered),
            forget_answered(Oldest, Kept);
        false ->
            Kept
    end.

forget_answered(none, Devices) ->
    Devices;
forget_answered(#request{id = Id}, Devices) ->
    forget_answered(Id, Devices);
forget_answered(Id, Devices = #devices{answered = Answered, topics = Topics}) ->
    {Topic, NAnswered} = gb_trees:take(Id, Answered),
    #{Topic := OfTopic} = Topics,
    put_topic(Topic, OfTopic#topic{answered = none}, Devices#devices{answered = NAnswered}).

forget_waiting(Id, Devices = #devices{waiting = Waiting, topics = Topics}) ->
    {Topic, NWaiting} = gb_trees:take(Id, Waiting),
    #{Topic := OfTopic = #topic{waiting = Queue}} = Topics,
    NQueue =
        case queue:out(Queue) of
            {{value, #request{id = Id}}, Others} -> Others;
            _ -> queue:filter(fun(#request{id = Other}) -> Other =/= Id end, Queue)
        end,
    put_topic(Topic, OfTopic#topic{waiting = NQueue}, Devices#devices{waiting = NWaiting}).

put_topic(Topic, OfTopic = #topic{waiting = Queue, answered = Answered}, Devices) ->
    #devices{topics = Topics} = Devices,
    case Answered =:= none andalso queue:is_empty(Queue) of
        true -> Devices#devices{topics = maps:remove(Topic, Topics)};
        false -> Devices#devices{topics = Topics#{Topic => OfTopic}}
    end.

expire(Now, Devices) ->
    expire_answered(Now, expire_waiting(Now, Devices)).

expire_waiting(Now, Devices = #devices{waiting = Waiting}) ->
    case has_expired(Now, Waiting) of
        {true, Id} -> expire_waiting(Now, forget_waiting(Id, Devices));
        false -> Devices
    end.

expire_answered(Now, Devices = #devices{answered = Answered}) ->
    case has_expired(Now, Answered) of
        {true, Id} -> expire_answered(Now, forget_answered(Id, Devices));
        false -> Devices
    end.

has_expired(Now, Tree) ->
    case gb_trees:is_empty(Tree) of
        true ->
            false;
        false ->
            case gb_trees:smallest(Tree) of
                {Id = {Until, _}, _} when Until =< Now -> {true, Id};
                _ -> false
            end
    end.

%% -------------------------------------------------------------------------------------------

%% The keys that are not needed any more. With `Ms' the caller calls this again after this time.
-spec unused(NowMs :: integer(), devices()) ->
    {[nats_gateway_host:key()], none | Ms :: pos_integer(), none | devices()}.
unused(Now, Devices = #devices{settings = Settings}) ->
    Expired = #devices{subscribed = Subscribed} = expire(Now, Devices),
    Left = maps:filter(fun(_, Until) -> Until > Now end, Subscribed),
    Unused = maps:keys(maps:without(maps:keys(Left), Subscribed)),
    Next =
        case maps:values(Left) of
            [] -> none;
            Untils -> lists:min(Untils) - Now
        end,
    Kept = Expired#devices{subscribed = Left, timer = Next =/= none},
    {Unused, Next, configure(Settings, Kept)}.
